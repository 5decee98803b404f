"""A worked adapter: VNHSGE, Vietnamese examination questions in JSON arrays, some of them with a picture.

A question with a picture becomes `vqa_single`, one without becomes `instr`; the explanation is the target,
and its own picture belongs to it. Essays name their fields in Vietnamese, in two spellings and either Unicode
form.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, RecordError, Rejection, SourceFile
from vipolyqwen_core.corpus.readers.row_fields import required, text_of
from vipolyqwen_core.corpus.readers.rows import read_rows

QUESTION = ("Question", "Câu hỏi")
EXPLANATION = ("Explanation", "Gợi ý trả lời", "Gọi ý trả lời", "Đáp án")


def questions(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
    """One record a question of the file."""
    folder = PurePosixPath(file.name).parent
    for row in read_rows(file, source):
        try:
            if row.error is not None:
                raise row.error
            yield _pair(row.fields, folder)
        except RecordError as error:
            yield error.rejection


def _pair(fields: Mapping[str | int, Any], folder: PurePosixPath) -> RawPair:
    named = {unicodedata.normalize("NFC", str(name)): value for name, value in fields.items()}
    shown = _pictures(named.get("Image_Question"), folder)
    return RawPair(
        Task.VQA_SINGLE if shown else Task.INSTR,
        text_of(required(named, QUESTION), "the question"),
        text_of(required(named, EXPLANATION), "the explanation"),
        query_images=shown,
        target_images=_pictures(named.get("Image_Answer"), folder),
    )


def _pictures(path: Any, folder: PurePosixPath) -> tuple[str, ...]:
    """The path below the image root. Blanks beside its slashes are typing errors: `Geo_27/ Geo_27_30.png`."""
    if not isinstance(path, str) or not path.strip():
        return ()
    return (str(folder.joinpath(*(part.strip() for part in path.split("/")))),)
