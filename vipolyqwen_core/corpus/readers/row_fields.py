"""One row of a file and its fields: how they are looked up, and what counts as a text."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, NamedTuple

from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.text import compose, writable

Key = str | int
Needs = Sequence[Sequence[Key]]
"""The fields that a record of a format cannot do without, each under all its names."""


class Row(NamedTuple):
    """One row of a file."""

    line: int
    fields: Mapping[Key, Any]
    """By name, and for CSV and TSV also by 0-based number. A `RecordError` is raised by whoever needs it."""
    error: RecordError | None = None
    """Why the row could not be read; then it has no fields."""


class WrittenFloat(float):
    """A number of a JSON file; its text is the one of the file, since `1.10` may be a price or a version."""

    __slots__ = ("written",)

    def __init__(self, written: str) -> None:
        self.written = written

    def __str__(self) -> str:
        return self.written


MISSING = object()


def look_up(fields: Mapping[Key, Any], key: Key) -> Any:
    """The value at a key; `a.b.0` reaches into objects and lists; `MISSING` where there is none.

    A number that is no place of a column is the name of one, as pandas writes them. Names are found in either
    Unicode form: a Mac writes them decomposed, and they look the same.
    """
    if isinstance(key, int):
        return fields.get(key, fields.get(str(key), MISSING))
    value = _named(fields, key)
    if value is not MISSING or "." not in key:
        return value
    value = fields
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = _named(value, part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def _named(fields: Mapping[Key, Any], name: str) -> Any:
    """The value under a name, or under an equal one in the other Unicode form."""
    if name in fields:
        return fields[name]
    if name.isascii():  # which has one form
        return MISSING
    composed = compose(name)
    alike = (value for key, value in fields.items() if isinstance(key, str) and compose(key) == composed)
    return next(alike, MISSING)


def optional(fields: Mapping[Key, Any], keys: Sequence[Key]) -> Any:
    """The value of the first of these keys that is there and not null; None where none is.

    NaN is null: pandas writes it for what is missing, and `json` reads it. An empty text or list counts where
    none of the keys has more: tables that were put together have the fields of all of them.

    Raises:
        RecordError: the row has it in place of the value
    """
    empty = None
    for key in keys:
        value = look_up(fields, key)
        if isinstance(value, RecordError):
            raise value
        if value is None or value is MISSING or (isinstance(value, float) and isnan(value)):
            continue
        if not (isinstance(value, (str, list)) and len(value) == 0):
            return value
        empty = value if empty is None else empty
    return empty


def is_record(fields: Mapping[Key, Any], needs: Needs) -> bool:
    """Whether a row has all that a record needs."""
    return all(optional(fields, keys) is not None for keys in needs)


def required(fields: Mapping[Key, Any], keys: Sequence[Key]) -> Any:
    """The value of the first of these keys that is there and not null.

    Raises:
        RecordError: none is
    """
    value = optional(fields, keys)
    if value is None:
        raise lacking("missing_field", "the record", fields, keys)
    return value


def lacking(rule: str, what: str, fields: Mapping[Key, Any], keys: Sequence[Key]) -> RecordError:
    """The error of what has a value at none of these keys: it names them, and the fields that are there."""
    names = " or ".join(repr(key) for key in keys) or "name that `columns` leaves free"
    wanted = {compose(str(key)) for key in keys}
    found = ", ".join(f"{key}{' (empty)' * (compose(str(key)) in wanted)}" for key in list(fields)[:20])
    return RecordError(rule, f"{what} has no {names}", f"fields: {found}")


def text_of(value: Any, what: str) -> str:
    """A text; numbers are spelled, those of JSON as they stand there; a list of one text is that text.

    Raises:
        RecordError: anything else
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and isfinite(value):
        return str(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    raise RecordError("wrong_type", f"{what} is no text but {type(value).__name__}", value)


def optional_text(fields: Mapping[Key, Any], keys: Sequence[Key], what: str) -> str | None:
    """As `text_of`, fit for UTF-8; None where none of the keys is there, or the text is empty."""
    value = optional(fields, keys)
    if value is None:
        return None
    return writable(text_of(value, what)) or None
