"""Rows of JSON Lines, and of JSON documents: where in a document the records stand."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.files import Line, SourceFile, read_cut_lines, read_pieces, too_long
from vipolyqwen_core.corpus.readers.json_elements import (
    Element,
    JsonWindow,
    elements_in_object,
    elements_of_arrays,
    values_one_behind_the_other,
)
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, Needs, Row, WrittenFloat, is_record

DOCUMENT = re.compile(r"\s*\[\s*(?:\{|$)|\s*\{\s*$")
"""How a line begins that is an array of records, or the beginning of one, or of a record of several lines."""
DOCUMENT_READ = "; an array of records, or records of several lines, are read from a file called .json"
"""What helps there."""
_DECODER = json.JSONDecoder(parse_float=WrittenFloat)
NUM_SEEN = 100
"""So many objects of a list are looked at to tell whether they are records."""


def json_line_rows(file: SourceFile, source: Source) -> Iterator[Row]:
    """One row a line, blank ones left out."""
    return _rows_of_lines(read_cut_lines(file.location, source.languages))


def json_rows(file: SourceFile, source: Source, needs: Needs) -> Iterator[Row]:
    """Rows of a `.json` file, which holds one of these:

    - an array of records, or several, one behind the other;
    - an object around a list of records; one that is too large to be looked at may hold several lists;
    - one object that is a record itself, as a dialogue with its messages;
    - records one behind the other, over several lines each, as `jq` writes them;
    - JSON Lines: files that bear the wrong suffix are common.
    """
    window = JsonWindow(read_pieces(file.location, source.languages))
    if window.peek() == "[":
        return _rows_of_elements(elements_of_arrays(window))
    try:
        first = window.value()
    except (ValueError, RecursionError):
        if window.is_full:
            return _rows_of_elements(elements_in_object(window))
        return _rows_of_broken_object(window, file, source, needs)
    if window.peek():  # something follows
        is_a_line = next(json_line_rows(file, source)).error is None
        if is_a_line or not isinstance(first, dict):
            return json_line_rows(file, source)
        return _rows_of_elements(chain([Element(first)], values_one_behind_the_other(window)))
    records = _list_of_records(first, needs) if isinstance(first, dict) else None
    return (_row(number, value) for number, value in enumerate([first] if records is None else records, 1))


def _rows_of_broken_object(
    window: JsonWindow, file: SourceFile, source: Source, needs: Needs
) -> Iterator[Row]:
    """Rows of an object with a mistake: its lists of records, or the objects behind it, or JSON Lines."""
    if _are_json(json_line_rows(file, source)):
        return json_line_rows(file, source)
    whole = JsonWindow(read_pieces(file.location, source.languages))
    for elements in (elements_in_object(window), values_one_behind_the_other(whole)):
        head = list(islice(elements, NUM_SEEN))
        if needs and _holds_records([element.value for element in head], needs):
            return _rows_of_elements(chain(head, elements))
    return json_line_rows(file, source)


def _are_json(lines: Iterator[Row]) -> bool:
    """Whether most of the first lines, after the first of all, are objects of their own."""
    are_sound = [row.error is None for row in islice(lines, 1, NUM_SEEN)]
    return 2 * sum(are_sound) > len(are_sound)


def _list_of_records(whole: dict[Key, Any], needs: Needs) -> list[Any] | None:
    """The one list of records in an object; None: the object is a record itself, or there is no such list.

    An object with all that a record needs is one, lists of objects that bear a needed name included, as the
    turns of a dialogue or its pictures; not so where these objects have all that is needed themselves.
    """
    lists: dict[Key, list[Any]] = {key: value for key, value in whole.items() if _holds_objects(value)}
    if needs:
        if is_record({key: value for key, value in whole.items() if key not in lists}, needs):
            return None
        of_records = [value for value in lists.values() if _holds_records(value, needs)]
        if len(of_records) == 1:
            return of_records[0]
        if is_record(whole, needs):
            return None
    return next(iter(lists.values())) if len(lists) == 1 else None


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _holds_records(objects: list[Any], needs: Needs) -> bool:
    """Whether one of the first objects has all that a record needs; some may be broken."""
    return any(isinstance(fields, dict) and is_record(fields, needs) for fields in objects[:NUM_SEEN])


def _rows_of_lines(lines: Iterator[Line]) -> Iterator[Row]:
    for line in lines:
        number, text, is_cut = line
        helps = DOCUMENT_READ if DOCUMENT.match(text) else ""
        if is_cut:
            yield Row(number, {}, too_long(line, helps))
            continue
        if not text.strip():
            continue
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            yield _broken_row(number, str(error), text, helps)
        else:
            yield _row(number, value, helps)


def _rows_of_elements(elements: Iterator[Element]) -> Iterator[Row]:
    for number, (value, broken) in enumerate(elements, 1):
        yield _row(number, value) if broken is None else _broken_row(number, broken, value)


def _row(number: int, value: Any, helps: str = "") -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    kind = type(value).__name__
    return Row(number, {}, RecordError("not_an_object", f"expected a JSON object, got {kind}{helps}", value))


def _broken_row(number: int, why: str, text: str, helps: str = "") -> Row:
    reason = f"not JSON: {' '.join(why.split())[:120]}{helps}"
    return Row(number, {}, RecordError("broken_json", reason, text))
