"""`owner_jsonl`, the JSON Lines of the paper's authors: one sample a line, `data_type` naming the kind.

    contrastive_with_score   input (text1, question), output (text2, answer), similarity_score
    instruction              input: a text or messages; output
    ocr, ocq                 images, question, answer
    vqa_single, vqa_multi    images, input: a text or messages; output (answer)

Any of them may add `group_id`, `positive_key` and `negatives`.
"""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.contract import IMAGE_TASKS, Task, Turn
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.dialogue import dialogue_pairs, turns_of
from vipolyqwen_core.corpus.readers.fields import answers_of, declared, images_of
from vipolyqwen_core.corpus.readers.records import RawImage, RawPair, RecordError, parse_score
from vipolyqwen_core.corpus.readers.row_fields import Key, Needs, optional, required, text_of
from vipolyqwen_core.corpus.text import normalise_text

TASK_OF_DATA_TYPE = {
    "contrastive_with_score": Task.TEXT_PAIR,
    "instruction": Task.INSTR,
    "ocr": Task.OCR,
    "ocq": Task.OCR,
    "vqa_single": Task.VQA_SINGLE,
    "vqa_multi": Task.VQA_MULTI,
}
QUERY_KEYS = {
    Task.TEXT_PAIR: ("input", "text1", "question"),
    Task.INSTR: ("input", "question"),
    Task.OCR: ("question", "input"),
    Task.VQA_SINGLE: ("input", "question"),
    Task.VQA_MULTI: ("input", "question"),
}
TARGET_KEYS = {
    Task.TEXT_PAIR: ("output", "text2", "answer"),
    Task.INSTR: ("output", "answer"),
    Task.OCR: ("answer", "output"),
    Task.VQA_SINGLE: ("output", "answer"),
    Task.VQA_MULTI: ("output", "answer"),
}


def owner_needs(source: Source) -> Needs:
    """The fields that every sample has: its kind where the manifest names none, and a question.

    Not the answer: a list of messages may hold it.
    """
    questions = tuple(dict.fromkeys(key for keys in QUERY_KEYS.values() for key in keys))
    return (questions,) if source.task is not None else (("data_type",), questions)


def owner_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pairs of one sample; several for alternative answers and a dialogue with `dialogue_turns` `each`.

    Raises:
        RecordError: the sample cannot become pairs
    """
    task = _task_of(fields, source)
    images = images_of(optional(fields, ("images", "image")))
    messages = optional(fields, QUERY_KEYS[task])
    if isinstance(messages, list) and task is not Task.TEXT_PAIR:
        return _dialogue(task, messages, images, fields, source, dialogue_turns)
    if task in IMAGE_TASKS and not images:
        raise RecordError("no_images", f"a sample of {task} has no images", optional(fields, ("images",)))
    question = required(fields, QUERY_KEYS[task])
    answer = required(fields, TARGET_KEYS[task])
    is_scored = task is Task.TEXT_PAIR
    return [
        RawPair(
            task=task,
            query=text_of(question, "the question"),
            target=target,
            query_images=images,
            score=_score_of(fields, source) if is_scored else None,
            **declared(fields, source),
        )
        for target in ((text_of(answer, "the answer"),) if is_scored else answers_of(answer))
    ]


def _task_of(fields: Mapping[Key, Any], source: Source) -> Task:
    kind = optional(fields, ("data_type",))
    if kind is None and source.task is not None:
        return source.task
    if not isinstance(kind, str) or kind.strip().lower() not in TASK_OF_DATA_TYPE:
        raise RecordError("unknown_data_type", f"data_type is none of {', '.join(TASK_OF_DATA_TYPE)}", kind)
    task = TASK_OF_DATA_TYPE[kind.strip().lower()]
    if source.task is not None and task is not source.task:
        raise RecordError("other_task", f"the source holds {source.task} only", kind)
    return task


def _score_of(fields: Mapping[Key, Any], source: Source) -> float:
    return parse_score(required(fields, ("similarity_score",)), source.score_range)


def _dialogue(
    task: Task,
    messages: list[Any],
    images: tuple[RawImage, ...],
    fields: Mapping[Key, Any],
    source: Source,
    dialogue_turns: str,
) -> list[RawPair]:
    """Pairs of messages and the answer to them; messages that hold the answer already are cut before it."""
    answer = optional(fields, TARGET_KEYS[task])
    turns, inside = turns_of(messages, has_answer=answer is None)
    if answer is not None:
        target = text_of(answer, "the answer")
        if turns[-1].role == "assistant":
            if normalise_text(turns[-1].text) == normalise_text(target):
                turns = turns[:-1]
            elif dialogue_turns == "last":
                reason = "the messages end with another answer than the record has beside them"
                raise RecordError("no_question", reason, turns[-1].text)
        turns = [*turns, Turn("assistant", target)]
    elif turns[-1].role != "assistant":
        required(fields, TARGET_KEYS[task])
    return dialogue_pairs(task, turns, [*images, *inside], fields, source, dialogue_turns)
