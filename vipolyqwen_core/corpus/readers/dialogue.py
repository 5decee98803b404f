"""Dialogues: from turns to pairs. The query holds nothing from its answer on."""

from collections.abc import Mapping, Sequence
from typing import Any

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, IMAGE_TASKS, Task, Turn
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.fields import declared, images_of
from vipolyqwen_core.corpus.readers.records import RawImage, RawPair, RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, optional, text_of
from vipolyqwen_core.corpus.text import normalise_text

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""Roles as files name them."""


def turns_of(
    messages: Any,
    role: Sequence[Key] = ("role", "from"),
    content: Sequence[Key] = ("content", "value"),
    *,
    has_answer: bool = True,
) -> tuple[list[Turn], list[RawImage]]:
    """The turns of a list of messages, and the pictures that stand inside their contents.

    A content is a text, or parts as `{type: text, text}` and `{type: image, image}`; other names of a picture
    are `image_url`, `path` and `url`. Without one, the record names the picture elsewhere.

    Args:
        messages: as the file has them
        role: where a message names who speaks
        content: where a message has what is said
        has_answer: whether the last answer stands in the messages, rather than behind them
    Raises:
        RecordError: no list of messages, an unknown role, no content, a picture in the last answer
    """
    if not isinstance(messages, list) or not messages:
        raise RecordError("broken_dialogue", "the messages are no list, or an empty one", messages)
    turns: list[Turn] = []
    images: list[RawImage] = []
    in_last_answer: list[RawImage] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RecordError("broken_dialogue", "a message is no object", message)
        name = optional(message, role)
        if not isinstance(name, str) or name.strip().lower() not in ROLE_NAMES:
            raise RecordError(
                "unknown_role", f"the role of a message is none of {', '.join(ROLE_NAMES)}", name
            )
        text, inside = _content_of(optional(message, content))
        turns.append(Turn(ROLE_NAMES[name.strip().lower()], text))
        images.extend(inside)
        if turns[-1].role == "assistant":
            in_last_answer = inside
    if in_last_answer and (has_answer or turns[-1].role == "assistant"):
        # pictures are dealt to questions: a question would hold what it asks for
        raise RecordError("picture_in_answer", "the last answer holds a picture", in_last_answer)
    return turns, images


def dialogue_pairs(
    task: Task,
    turns: Sequence[Turn],
    images: Sequence[RawImage],
    fields: Mapping[Key, Any],
    source: Source,
    dialogue_turns: str,
) -> list[RawPair]:
    """The last answer of a dialogue with its question and what came before, or (`each`) every answer.

    Pictures are dealt to the turns by their placeholders, missing placeholders counted in front of the first
    user text: an earlier answer does not see later pictures. `<image>` in an answer is plain text in the pair
    whose target it is.

    Raises:
        RecordError: no answer follows a question, the task needs pictures and there are none, or `fields`
            declares something in a wrong form
    """
    if task in IMAGE_TASKS and not images:
        raise RecordError("no_images", f"a dialogue of {task} has no images", list(fields))
    answers = [
        place
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and place and turns[place - 1].role == "user"
    ]
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise RecordError("no_answer", "the dialogue has no answer of the assistant", turns)
    if not answers or (dialogue_turns == "last" and answers[-1] != last):
        raise RecordError("no_question", "the answer does not follow a turn of the user", turns)
    texts = [normalise_text(turn.text) if images else turn.text for turn in turns]  # `&lt;image&gt;` is one
    placeholders = [text.count(IMAGE_PLACEHOLDER) for text in texts]
    missing = max(0, len(images) - (sum(placeholders) - placeholders[last]))
    return [
        RawPair(
            task=task,
            query=turns[place - 1].text,
            target=turns[place].text,
            query_images=tuple(images[: missing + sum(placeholders[:place])]),
            history=tuple(turns[: place - 1]) or None,
            **declared(fields, source),
        )
        for place in (answers if dialogue_turns == "each" else answers[-1:])
    ]


def _content_of(content: Any) -> tuple[str, list[RawImage]]:
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return text_of(content, "the content of a message"), []
    texts: list[str] = []
    images: list[RawImage] = []
    for part in content:
        kind = part.get("type", "text")
        if kind == "text":
            texts.append(text_of(part.get("text"), "a part of a message"))
        elif kind in ("image", "image_url"):
            texts.append(IMAGE_PLACEHOLDER)
            images.extend(images_of(optional(part, (kind, "image", "path", "url"))))
        else:
            raise RecordError("unknown_part", f"a part of a message is of type {kind!r}", part)
    return "".join(texts), images
