"""A line that is too long to be held costs itself, whatever the format, and memory stays small."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.core.corpus.readers.reading import jsonl, read, rules
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import csv_cells, delimited_rows, files, read_source
from vipolyqwen_core.corpus.readers.files import read_cut_lines, read_lines, read_text

LIMIT = 200
STS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}
GOOD = jsonl({"query": "q", "target": "t"})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", LIMIT)
    monkeypatch.setattr(files, "PIECE_BYTES", 64)
    monkeypatch.setattr(files, "SHOWN_BYTES", 20)


def places(lines: Any) -> list[tuple[int, str, bool]]:
    return [(line.number, line.text[:3], line.is_cut) for line in lines]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("num_chars", [LIMIT + 1, LIMIT + 63, LIMIT + 64, LIMIT + 65, 10 * LIMIT])
def test_lines_behind_one_that_is_too_long_keep_their_numbers(
    tmp_path: Path, encoding: str, end: str, num_chars: int
) -> None:
    content = end.join(["one", "x" * num_chars, "", "four"])
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    assert places(read_cut_lines(str(tmp_path / "a.txt"))) == [
        (1, "one", False), (2, "xxx", True), (3, "", False), (4, "fou", False),
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_of_just_the_limit_is_whole(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_text("x" * LIMIT + end, newline="")
    assert [(len(line.text), line.is_cut) for line in read_cut_lines(str(tmp_path / "a.txt"))] == [
        (LIMIT, False)
    ]


def test_who_reads_lines_alone_gets_no_part_of_one_for_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n" + "x" * 999)
    lines = read_lines(str(tmp_path / "a.txt"))
    assert next(lines).text == "one"
    with pytest.raises(OSError, match="line 2 is longer than 200 bytes"):
        next(lines)
    with pytest.raises(OSError, match="line 2 is longer"):
        read_text(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("start", ["\0", " ", '{"query": "', "[1, "])
def test_a_line_of_json_that_is_too_long_costs_itself(tmp_path: Path, start: str) -> None:
    content = f"{GOOD}\n{start * 300}\n{GOOD}\n"
    records = read(tmp_path, "a.jsonl", content, **STS)
    assert [(record.line, *rules([record])) for record in records] == [
        (1, None),
        (2, "line_too_long"),
        (3, None),
    ]
    assert records[1].rejection is not None
    assert records[1].rejection.reason == "the line is longer than 200 bytes"
    assert records[1].rejection.value == (start * 20)[:20]


def test_an_array_on_one_line_is_told_where_it_is_read_however_long(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.jsonl", f"[{', '.join([GOOD] * 99)}]", **STS)
    assert record.rejection is not None
    assert record.rejection.reason.endswith("are read from a file called .json")


@pytest.mark.parametrize("long", [", " * 300, '"' + "x" * 300 + '"', " " * 300])
def test_a_line_of_a_table_that_is_too_long_costs_itself(tmp_path: Path, long: str) -> None:
    records = read(tmp_path, "a.csv", f'query,target\na,b\n{long}\nc,d\n"e\n{"f" * 300}\ng,h\n', **STS)
    assert [(record.line, *rules([record])) for record in records] == [
        (2, None), (3, "line_too_long"), (4, None), (5, "missing_field"), (6, "line_too_long"), (7, None),
    ]  # fmt: skip


def test_a_header_that_is_too_long_is_in_the_ledger(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", f"{' ' * 300}\nquery,target\na,b\n", **STS)
    assert [(record.line, *rules([record])) for record in records] == [(1, "line_too_long"), (3, None)]


def test_a_record_of_many_quoted_cells_ends_where_an_element_of_json_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_cells, "MAX_CELL_CHARS", 100)
    short, long = f'"{"a" * 20}\nb",c\n', f'"{"a" * 60}\n{"b" * 60}","c\nd"\n'
    records = read(tmp_path, "a.csv", f"query,target\n{short}{long}{short}", **STS)
    assert [record.line for record in records if record.pairs and record.pairs[0].target == "c"] == [2, 7]


def test_a_line_of_more_cells_than_any_table_has_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited_rows, "MAX_CELLS", 5)
    for content in ("query,target\n,,,,,\na,b,,,\n", ",,,,,\nquery,target\na,b,,,\n"):
        records = read(tmp_path, "a.csv", content, **STS)
        assert sorted((len(record.pairs), *rules([record])) for record in records) == [
            (0, "broken_csv"), (1, None),
        ]  # fmt: skip


def test_a_line_that_is_too_long_costs_its_number_in_each_of_parallel_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one\n{' ' * 300}\nthree\n")
    (tmp_path / "b.txt").write_text("een\ntwee\ndrie\n")
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    records = list(
        read_source(Source(name="s", format=Format.PARALLEL_LINES, task=Task.TEXT_PAIR, paths=paths))
    )
    assert [(record.line, *rules([record])) for record in records] == [
        (1, None),
        (2, "line_too_long"),
        (3, None),
    ]


def test_what_goes_on_beyond_the_limit_is_never_held(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" + bytes(8_000_000) + f"\n{GOOD}".encode(), 1))
    tracemalloc.start()
    try:
        lines = places(read_cut_lines(str(tmp_path / "a.jsonl.gz")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lines == [(1, "", False), (2, "\0\0\0", True), (3, '{"q', False)]
    assert peak < 2_000_000
