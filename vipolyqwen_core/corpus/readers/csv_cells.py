"""Cells of CSV and TSV lines, streaming: quoted ones with their line breaks, stray quotes as they stand."""

import csv
from collections import deque
from collections.abc import Iterator

from vipolyqwen_core.corpus.readers.files import Line, too_long
from vipolyqwen_core.corpus.readers.records import RecordError

MAX_QUOTED_LINES = 200
"""A quote that stays open for more lines is taken for a plain character."""
MAX_CELL_CHARS = 32 * 1024 * 1024
"""A record with quoted cells may be as long as an element of JSON; the csv module stops at 128 KiB a cell."""


def cells_of(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Cells of each record. A quoted cell may hold line breaks; a quote that never closes is a character.

    So a stray quote costs one line, not the rest of the file.
    """
    csv.field_size_limit(MAX_CELL_CHARS)  # of the whole process; the module has no other way
    waiting: deque[Line] = deque()

    def pull() -> Line | None:
        return waiting.popleft() if waiting else next(lines, None)

    while (line := pull()) is not None:
        if line.is_cut:
            yield line.number, too_long(line)
            continue
        if not line.text.strip():
            continue
        if '"' not in line.text:
            yield line.number, line.text.split(delimiter)
            continue
        taken = [line]

        def feed(taken: list[Line] = taken) -> Iterator[str]:
            yield taken[0].text + "\n"
            num_chars = len(taken[0].text)
            while len(taken) <= MAX_QUOTED_LINES and (following := pull()) is not None:
                taken.append(following)
                num_chars += len(following.text)
                if following.is_cut or num_chars > MAX_CELL_CHARS:
                    return
                yield following.text + "\n"

        try:
            cells: list[str] = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        except csv.Error:
            waiting.extendleft(reversed(taken[1:]))
            yield line.number, _loose_cells(line.text, delimiter)
            continue
        yield line.number, cells


def _loose_cells(text: str, delimiter: str) -> list[str] | RecordError:
    if delimiter == "\t":
        return text.split("\t")
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error as error:
        return RecordError("broken_csv", f"not CSV: {error}", text)
