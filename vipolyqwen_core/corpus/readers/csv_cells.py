"""Cells of CSV and TSV lines, streaming: quoted ones with their line breaks, stray quotes as they stand."""

import csv
from collections import deque
from collections.abc import Iterator

from vipolyqwen_core.corpus.readers.files import Line, too_long
from vipolyqwen_core.corpus.readers.records import RecordError

MANY_LINES = 200
"""Lists of so many lines, of which nearly each has as many commas as a row, are no texts."""
MOST_LINES = 10_000
"""A quote that stays open for more lines is taken for a plain character: they are in memory meanwhile."""
MAX_CELL_CHARS = 32 * 1024 * 1024
"""A record with quoted cells may be as long as an element of JSON; the csv module stops at 128 KiB a cell."""


def cells_of(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Cells of each record. A quoted cell may hold line breaks; a quote is a plain character where it never
    closes, or where rows would be gone between it and the one that closes it.

    So a stray quote costs one line, not the rest of the file.
    """
    csv.field_size_limit(MAX_CELL_CHARS)  # of the whole process; the module has no other way
    waiting: deque[Line] = deque()
    width: int | None = None  # of the first record

    def pull() -> Line | None:
        return waiting.popleft() if waiting else next(lines, None)

    while (line := pull()) is not None:
        if line.is_cut:
            yield line.number, too_long(line)
            continue
        if not line.text.strip():
            continue
        if '"' not in line.text:
            cells = line.text.split(delimiter)
            width = width or len(cells)
            yield line.number, cells
            continue
        taken = [line]

        def feed(taken: list[Line] = taken) -> Iterator[str]:
            yield taken[0].text + "\n"
            num_chars = len(taken[0].text)
            while len(taken) < MOST_LINES and (following := pull()) is not None:
                taken.append(following)
                num_chars += len(following.text)
                if following.is_cut or num_chars > MAX_CELL_CHARS:
                    return
                yield following.text + "\n"

        try:
            quoted: list[str] | None = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        except csv.Error:
            quoted = None
        if quoted is None or _holds_rows(quoted, taken, delimiter, width):
            waiting.extendleft(reversed(taken[1:]))
            yield line.number, _loose_cells(line.text, delimiter)
            continue
        width = width or len(quoted)
        yield line.number, quoted


def _holds_rows(cells: list[str], taken: list[Line], delimiter: str, width: int | None) -> bool:
    """Whether a record of several lines hides rows in its cells: nearly each line could be a row itself.

    Lines of a text may have the commas of a row by chance, though hardly its tabs. So between other marks
    only many lines, or a record of too many cells, are judged by that.
    """
    width = width or taken[0].text.count(delimiter) + 1
    if len(taken) == 1 or (delimiter != "\t" and len(cells) <= width and len(taken) <= MANY_LINES):
        return False
    are_rows = [line.text.count(delimiter) == width - 1 for line in taken]
    return 10 * sum(are_rows) >= 9 * len(are_rows)


def _loose_cells(text: str, delimiter: str) -> list[str] | RecordError:
    """Cells of one line by itself. Spark and MySQL write a quote within a quoted cell as `\\"`."""
    if '\\"' in text:
        try:
            return next(csv.reader([text.replace('\\"', '""')], delimiter=delimiter, strict=True))
        except csv.Error:
            pass  # a backslash and a quote that stand for themselves
    if delimiter == "\t":
        return text.split("\t")
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error as error:
        return RecordError("broken_csv", f"not CSV: {error}", text)
