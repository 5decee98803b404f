"""Rows of CSV and TSV files: cells under the names of the header, and under their numbers."""

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.csv_cells import cells_of
from vipolyqwen_core.corpus.readers.files import SourceFile, read_cut_lines
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, Row
from vipolyqwen_core.corpus.text import compose

TOLD_DELIMITER = re.compile(r'"?sep=(.)"?,*', re.IGNORECASE)
"""A first line that Excel takes for what stands between the cells, and for no row."""
QUOTED = re.compile(r'"[^"]*(?:"|$)')
"""What stands in quotes, over several lines too, or to the end."""
NUM_TRIED = 20
"""So many lines tell the delimiter."""
MAX_CELLS = 16_384
"""Of a line: a sheet of Excel has no more. Each cell takes a hundred times the memory of its comma."""


def delimited_rows(file: SourceFile, source: Source) -> Iterator[Row]:
    """Rows of as many cells as the header, or the first line where there is none: missing ones are null.

    Without that a line that breaks off before its score would be a pair without one, which is a positive.
    """
    lines = read_cut_lines(file.location, source.languages)
    given = (line for line in lines if line.is_cut or line.text.strip())
    first = next(given, None)
    told = TOLD_DELIMITER.fullmatch(first.text) if first else None
    first = next(given, None) if told else first
    if first is None:
        return
    head = [first, *islice(lines, NUM_TRIED - 1)]
    delimiter = told[1] if told else _delimiter(file.suffix, [line.text for line in head if not line.is_cut])
    names: list[str] | None = None
    width: int | None = None
    for number, cells in cells_of(chain(head, lines), delimiter):
        if isinstance(cells, RecordError):
            yield Row(number, {}, cells)
            continue
        if len(cells) > MAX_CELLS:
            reason = f"the line has {len(cells)} cells, at most {MAX_CELLS} are read"
            yield Row(number, {}, RecordError("broken_csv", reason, delimiter.join(cells[:MAX_CELLS])))
            continue
        if width is None:
            width = len(cells)
            if source.header:
                names = [compose(name.strip()) for name in cells]
                continue
        if names is not None and "".join(cells[width:]).strip():
            reason = f"the line has {len(cells)} cells, the header {width}: is a {delimiter!r} not quoted?"
            yield Row(number, {}, RecordError("broken_csv", reason, delimiter.join(cells)))
            continue
        padded: list[str | None] = [*cells, *[None] * (width - len(cells))]
        fields: dict[Key, Any] = dict(enumerate(padded))
        if names is not None:
            fields.update(_named(names, padded))
        yield Row(number, fields)


def _named(names: list[str], cells: list[str | None]) -> dict[str, str | RecordError | None]:
    """Cells by the names of the header; of a name that stands twice, with different cells, that it does."""
    fields: dict[str, str | RecordError | None] = {}
    for name, cell in zip(names, cells, strict=False):
        if name in fields and fields[name] != cell:
            numbers = " and ".join(str(number) for number, other in enumerate(names) if other == name)
            reason = f"several columns are called {name!r}: map the one of them, by its number: {numbers}"
            fields[name] = RecordError("ambiguous_column", reason, cell or "")
        else:
            fields[name] = cell
    return fields


def _delimiter(suffix: str, lines: list[str]) -> str:
    """What stands between the cells: the mark that the most of these lines have as often as the first one.

    Quoted cells do not count. Where several are equal, the likelier.
    """
    if suffix in (".tsv", ".tab"):
        return "\t"
    bare = QUOTED.sub("", "\n".join(lines)).split("\n")
    first = bare[0]
    marks = [mark for mark in ("\t,;|" if suffix == ".txt" else ",;\t|") if mark in first]
    return max(
        marks, key=lambda mark: sum(line.count(mark) == first.count(mark) for line in bare), default=","
    )
