"""A worked adapter: OwlEval keeps the answers of a model to questions on pictures, a JSON line each.

The first question on a picture is `vqa_single`. Those after it follow up on what was said before, so they
are `vqa_multi`, and the earlier turns are their history. Some files call every picture .png; all are .jpg.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, RecordError, Rejection, SourceFile
from vipolyqwen_core.corpus.readers.row_fields import required, text_of
from vipolyqwen_core.corpus.readers.rows import read_rows

NO_ANSWER = {
    "无法回溯": "the model's answer was lost",
    "模型放弃回答": "the model gave up",
    "模型拒绝回答": "the model refused to answer",
}
"""What stands in place of an answer."""


def answers(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
    """One record an answer. The questions on a picture follow each other."""
    said: dict[str, list[Turn]] = defaultdict(list)
    for row in read_rows(file, source):
        try:
            if row.error is not None:
                raise row.error
            picture = PurePosixPath(text_of(required(row.fields, ["image"]), "the picture"))
            question = text_of(required(row.fields, ["question"]), "the question")
            answer = text_of(required(row.fields, ["answer"]), "the answer")
            if (reason := NO_ANSWER.get(answer.strip(" ."))) is not None:
                raise RecordError("no_answer", reason, answer)
        except RecordError as error:
            yield error.rejection
            continue
        history = said[picture.stem]
        yield RawPair(
            Task.VQA_MULTI if history else Task.VQA_SINGLE,
            question,
            answer,
            query_images=(picture.with_suffix(".jpg").name,),
            history=tuple(history) or None,
        )
        history += [Turn("user", question), Turn("assistant", answer)]
