"""What a reader yields: records of a file, each with its pairs or with the reason why it has none."""

import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import pyarrow as pa

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.text import writable

VALUE_CHARS = 200
"""Length of an offending value in the ledger."""

UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,  # a ZIP archive that asks for an unknown method of packing
    pa.ArrowException,
    UnicodeError,
    OverflowError,
)
"""What libraries raise where a file or its packing is broken."""

RawImage = str | bytes
"""A picture as a file names it: a path below the image root, or the bytes themselves."""


class RawSide(NamedTuple):
    """A hard negative as it is read."""

    text: str
    images: tuple[RawImage, ...] = ()


@dataclass(frozen=True)
class RawPair:
    """A pair as it is read: nothing normalised, no picture opened, no placeholder repaired."""

    task: Task
    query: str
    target: str
    query_images: tuple[RawImage, ...] = ()
    """In the order of the placeholders of history and query; where some are missing, the first ones."""
    target_images: tuple[RawImage, ...] = ()
    history: tuple[Turn, ...] | None = None
    """Earlier turns, a system turn included; None where the query is a plain text."""
    score: float | None = None
    """In [0, 1]."""
    negatives: tuple[RawSide, ...] = ()
    group_id: str | None = None
    positive_key: str | None = None

    @property
    def images(self) -> tuple[tuple[RawImage, ...], ...]:
        """The pictures of each side: of the query, of the target, of each hard negative."""
        return (self.query_images, self.target_images, *(negative.images for negative in self.negatives))


@dataclass(frozen=True)
class Rejection:
    """Why a record gave no pair."""

    rule: str
    """Name of the rule, the key to count by: `broken_json`."""
    reason: str
    """One sentence for a person."""
    value: str
    """The offending value, cut to 200 characters."""


@dataclass(frozen=True)
class Record:
    """One record of a file: it has pairs, or a rejection, never both and never neither."""

    file: str
    """The source file, relative to the source's root."""
    line: int
    """1-based line where the record begins, or 1-based record where a file has no lines."""
    pairs: tuple[RawPair, ...]
    rejection: Rejection | None = None


class RecordError(ValueError):
    """A record that cannot become pairs. Raised by the parts of a reader, turned into a `Rejection`."""

    def __init__(self, rule: str, reason: str, value: object = "") -> None:
        super().__init__(reason)
        self.rejection = Rejection(rule, reason, shorten(value))


def shorten(value: object) -> str:
    """The value for the ledger: 200 characters that can be written as UTF-8."""
    if isinstance(value, (bytes, bytearray)):
        value = f"{len(value)} bytes, {bytes(value[:40])!r}"
    text = value if isinstance(value, str) else repr(value)
    return writable(text[:VALUE_CHARS])


def parse_score(value: object, score_range: tuple[float, float]) -> float:
    """A score scaled to [0, 1]. Labels as files have them are understood: `1,`, ` 3.8`, `3,8`.

    Raises:
        RecordError: not a number, or outside the range
    """
    number = value
    if isinstance(value, str):
        text = value.strip().rstrip(",;").strip()
        try:
            number = float(text.replace(",", "."))
        except ValueError:
            raise RecordError("score_not_a_number", "the score is not a number", value) from None
    if isinstance(number, bool) or not isinstance(number, (int, float, Decimal)) or not _is_finite(number):
        raise RecordError("score_not_a_number", "the score is not a number", value)
    low, high = score_range
    scaled = (float(number) - low) / (high - low)
    if not -1e-6 <= scaled <= 1 + 1e-6:
        reason = f"the score is outside {low:g} to {high:g}, the `score_range` of the source"
        raise RecordError("score_out_of_range", reason, value)
    return min(max(scaled, 0.0), 1.0)


def _is_finite(number: float | Decimal) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the floats
        return False
