"""Rows of tables: JSON, JSON Lines, CSV, TSV and Parquet files as numbered mappings, and fields out of them.

All of them stream, arrays of a `.json` file too; a broken line or element costs only itself. A line that is
blank is no record.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, islice
from math import isfinite, isnan
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.csv_cells import cells_of
from vipolyqwen_core.corpus.readers.files import Line, SourceFile, open_bytes, read_lines, read_pieces
from vipolyqwen_core.corpus.readers.json_elements import (
    Element,
    JsonWindow,
    elements_of_arrays,
    elements_of_lists,
)
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.text import writable

PARQUET_ROWS = 256
"""Rows of a Parquet file in memory at once."""
UNCONVERTIBLE = (ValueError, OverflowError, LookupError)
"""What Python raises for a value of Arrow that it cannot hold: a time out of its range or of an unknown zone,
a text that is no UTF-8, a struct with a name twice."""

NUM_SEEN = 100
"""So many objects of a list are looked at to tell whether they are records."""

Key = str | int
Needs = Sequence[Sequence[Key]]
"""The fields that a record of a format cannot do without, each under all its names."""


class Row(NamedTuple):
    """One row of a file."""

    line: int
    fields: Mapping[Key, Any]
    """By name, and for CSV and TSV also by 0-based number."""
    error: RecordError | None = None
    """Why the row could not be read; then it has no fields."""


def read_rows(file: SourceFile, source: Source, needs: Needs = ()) -> Iterator[Row]:
    """Rows of a file, by its suffix.

    Args:
        needs: tells a `.json` file that is one record with a list in it from an object around a list of
            records; without it, the one list of objects in an object is taken for the records
    Raises:
        ValueError: the suffix is none that is read
        OSError, pyarrow.ArrowInvalid: the file cannot be read
    """
    if file.suffix in (".csv", ".tsv", ".tab", ".txt"):
        return _delimited_rows(file, source)
    if file.suffix in (".jsonl", ".ndjson", ".jsonlines"):
        return _json_lines(read_lines(file.location, source.languages))
    if file.suffix == ".json":
        return _json_rows(file, source, needs)
    if file.suffix in (".parquet", ".pq"):
        return _parquet_rows(file)
    raise ValueError(
        f"source {source.name!r}: file {file.name} has suffix {file.suffix!r};"
        " expected .csv, .tsv, .json, .jsonl or .parquet"
    )


def _json_lines(lines: Iterator[Line]) -> Iterator[Row]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, RecordError("broken_json", f"not JSON: {_plain(error)}", text))
            continue
        yield _mapping_row(number, fields)


def _mapping_row(number: int, fields: Any) -> Row:
    if isinstance(fields, dict):
        return Row(number, fields)
    kind = type(fields).__name__
    return Row(number, {}, RecordError("not_an_object", f"expected a JSON object, got {kind}", fields))


def _json_rows(file: SourceFile, source: Source, needs: Needs) -> Iterator[Row]:
    """Elements of the array of a `.json` file: at the top, or the one list of records in the top object.

    A top object that is itself a record, as one dialogue with its messages, is that record.

    Files that are named .json and hold JSON Lines are common: they are read as such. Of a top object that is
    too large to be looked at as a whole, each list of objects is read.
    """
    window = JsonWindow(read_pieces(file.location, source.languages))
    if window.peek() == "[":
        yield from _element_rows(elements_of_arrays(window))
        return
    try:
        whole = window.value()
    except (ValueError, RecursionError):
        if window.is_full:
            yield from _element_rows(elements_of_lists(window))
        else:
            yield from _rows_of_broken(window, file, source, needs)
        return
    if window.peek():
        yield from _json_lines(read_lines(file.location, source.languages))
        return
    inner = _list_of_records(whole, needs) if isinstance(whole, dict) else None
    if inner is None:
        yield _mapping_row(1, whole)
    else:
        yield from (_mapping_row(number, fields) for number, fields in enumerate(inner, 1))


def _rows_of_broken(window: JsonWindow, file: SourceFile, source: Source, needs: Needs) -> Iterator[Row]:
    """Rows where the object at the top cannot be read: lists of records within it, else JSON Lines."""
    if not _are_json(read_lines(file.location, source.languages)):
        elements = elements_of_lists(window)
        head = list(islice(elements, NUM_SEEN))
        if needs and _holds_records([element.value for element in head], needs):
            yield from _element_rows(chain(head, elements))
            return
    yield from _json_lines(read_lines(file.location, source.languages))


def _are_json(lines: Iterator[Line]) -> bool:
    """Whether most of the first lines, after the first of all, are objects of their own."""
    rows = list(islice(_json_lines(lines), 1, NUM_SEEN))
    return 2 * sum(row.error is None for row in rows) > len(rows)


def _list_of_records(whole: dict[Key, Any], needs: Needs) -> list[Any] | None:
    """The one list of records in an object; None: the object is a record itself, or there is no such list.

    An object with all that a record needs is one, lists of objects that bear a needed name included, as the
    turns of a dialogue or its pictures; not so where these objects have all that is needed themselves.
    """
    lists: dict[Key, list[Any]] = {key: value for key, value in whole.items() if _holds_objects(value)}
    if needs and _is_record({key: value for key, value in whole.items() if key not in lists}, needs):
        return None
    of_records = [value for value in lists.values() if needs and _holds_records(value, needs)]
    if len(of_records) == 1:
        return of_records[0]
    if needs and _is_record(whole, needs) and not of_records:
        return None
    return next(iter(lists.values())) if len(lists) == 1 else None


def _is_record(fields: Mapping[Key, Any], needs: Needs) -> bool:
    return all(optional(fields, keys) is not None for keys in needs)


def _holds_records(objects: list[Any], needs: Needs) -> bool:
    """Whether one of the first objects has all that a record needs; some may be broken."""
    return any(isinstance(fields, dict) and _is_record(fields, needs) for fields in objects[:NUM_SEEN])


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _element_rows(elements: Iterator[Element]) -> Iterator[Row]:
    for number, (value, broken) in enumerate(elements, 1):
        if broken is None:
            yield _mapping_row(number, value)
        else:
            yield Row(number, {}, RecordError("broken_json", f"not JSON: {broken[:120]}", value))


def _parquet_rows(file: SourceFile) -> Iterator[Row]:
    rows: list[tuple[dict[Key, Any], RecordError | None]]
    with open_bytes(file.location) as stream:
        number = 0
        for batch in pq.ParquetFile(stream).iter_batches(PARQUET_ROWS):
            try:
                rows = [(fields, None) for fields in batch.to_pylist()]
            except UNCONVERTIBLE:
                rows = [_converted(batch.slice(place, 1)) for place in range(batch.num_rows)]
            for fields, error in rows:
                number += 1
                yield Row(number, fields, error)


def _converted(row: pa.RecordBatch) -> tuple[dict[Key, Any], RecordError | None]:
    """The fields of one row, or why it has none."""
    fields: dict[Key, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (fields[name],) = column.to_pylist()
        except UNCONVERTIBLE as error:
            reason = f"the column {name!r} holds a value of {column.type} that cannot be read"
            return {}, RecordError("wrong_type", reason, str(error))
    return fields, None


def _delimited_rows(file: SourceFile, source: Source) -> Iterator[Row]:
    """Rows of as many cells as the header, or the first line where there is none: missing ones are null.

    Without that a line that breaks off before its score would be a pair without one, which is a positive.
    """
    delimiter = "\t" if file.suffix in (".tsv", ".tab") else None
    lines = read_lines(file.location, source.languages)
    first = next((line for line in lines if line.text.strip()), None)
    if first is None:
        return
    if delimiter is None:
        marks = "\t,;|" if file.suffix == ".txt" else ",;\t|"
        delimiter = next((mark for mark in marks if mark in first.text), ",")
    names: list[str] | None = None
    width: int | None = None
    for number, cells in cells_of(chain([first], lines), delimiter):
        if isinstance(cells, RecordError):
            yield Row(number, {}, cells)
            continue
        if width is None:
            width = len(cells)
            if source.header:
                names = [name.strip() for name in cells]
                continue
        if names is not None and "".join(cells[width:]).strip():
            reason = f"the line has {len(cells)} cells, the header {width}: is a {delimiter!r} not quoted?"
            yield Row(number, {}, RecordError("broken_csv", reason, delimiter.join(cells)))
            continue
        padded: list[str | None] = [*cells, *[None] * (width - len(cells))]
        fields: dict[Key, Any] = dict(enumerate(padded))
        if names is not None:
            fields.update(zip(names, padded, strict=False))
        yield Row(number, fields)


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


MISSING = object()


def look_up(fields: Mapping[Key, Any], key: Key) -> Any:
    """The value at a key; `a.b.0` reaches into objects and lists; `MISSING` where there is none."""
    if key in fields:
        return fields[key]
    if not isinstance(key, str) or "." not in key:
        return MISSING
    value: Any = fields
    for part in key.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def optional(fields: Mapping[Key, Any], keys: Sequence[Key]) -> Any:
    """The value of the first of these keys that is there and not null; None where none is.

    NaN is null: pandas writes it for what is missing, and `json` reads it.
    """
    for key in keys:
        value = fields.get(key)
        if value is None and isinstance(key, str) and "." in key:
            value = look_up(fields, key)
        if value is not None and value is not MISSING and not (isinstance(value, float) and isnan(value)):
            return value
    return None


def required(fields: Mapping[Key, Any], keys: Sequence[Key]) -> Any:
    """The value of the first of these keys that is there and not null.

    Raises:
        RecordError: none is
    """
    value = optional(fields, keys)
    if value is None:
        names = " or ".join(repr(key) for key in keys)
        found = ", ".join(f"{key} (empty)" if key in keys else str(key) for key in list(fields)[:20])
        raise RecordError("missing_field", f"the record has no {names}", f"fields: {found}")
    return value


def text_of(value: Any, what: str) -> str:
    """A text; numbers are spelled, a list of one text is that text.

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
