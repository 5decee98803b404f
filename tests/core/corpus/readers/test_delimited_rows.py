"""CSV and TSV files: headers, quotes, and lines that are too short or too long."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.core.corpus.readers.reading import read, rules
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import read_source

KEYS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}


def test_a_table_without_header_goes_by_number(tmp_path: Path) -> None:
    content = 'a,b,1\n"c, ""d""",e,0\n'
    records = read(tmp_path, "a.csv", content, header=False, **KEYS)
    assert [(p.query, p.target, p.score) for r in records for p in r.pairs] == [
        ("a", "b", 1.0), ('c, "d"', "e", 0.0),
    ]  # fmt: skip
    turned = {"query": 1, "target": 0}
    (first, _) = read(tmp_path, "a.csv", content, header=False, columns=turned, **KEYS)
    assert (first.pairs[0].query, first.pairs[0].score) == ("b", 1.0)


@pytest.mark.parametrize("told", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("start", ["query;target;score\n", ""])
def test_the_line_that_tells_excel_the_delimiter_is_neither_header_nor_row(
    tmp_path: Path, told: str, start: str
) -> None:
    content = f"{told}\r\n{start}a, b;c;1\n"
    (record,) = read(tmp_path, "a.csv", content, header=bool(start), **KEYS)
    assert record.line == 2 + bool(start)
    assert [(pair.query, pair.target, pair.score) for pair in record.pairs] == [("a, b", "c", 1.0)]


def test_quoted_cells_hold_line_breaks_and_a_stray_quote_costs_one_line(tmp_path: Path) -> None:
    content = 'query,target,score\n"a\nb",c,1\n"open,d,0\ne,f,1\n g "h",i,0.5\n"j"k,l,0\n'
    records = read(tmp_path, "a.csv", content, **KEYS)
    assert [(record.line, rules([record])[0]) for record in records] == [
        (2, None), (4, "missing_field"), (5, None), (6, None), (7, None),
    ]  # fmt: skip
    assert records[0].pairs[0].query == "a\nb"
    assert [record.pairs[0].query for record in records[2:]] == ["e", ' g "h"', "jk"]


def test_a_blank_line_is_no_record_and_a_carriage_return_costs_its_line(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", 'query,target\na,b\n \nan "x"\ry,c\n\nd,e\n', **KEYS)
    assert [(record.line, *rules([record])) for record in records] == [
        (2, None),
        (4, "broken_csv"),
        (6, None),
    ]


def test_a_quote_that_closes_far_below_is_a_stray_one(tmp_path: Path) -> None:
    content = 'query,target,score\n"open,d,0\n' + "e,f,1\n" * 300 + "e\n\n" + 'g,h",0\n'
    records = read(tmp_path, "a.csv", content, **KEYS)
    assert [record.line for record in records] == [*range(2, 304), 305]
    assert rules(records) == ["missing_field", *[None] * 300, "missing_field", None]


def test_a_quote_that_never_closes_holds_few_lines(tmp_path: Path) -> None:
    content = 'query,target\n"open,d\n' + "\n" * 500_000 + "e,f\n"
    (tmp_path / "a.csv").write_text(content)
    tracemalloc.start()
    records = list(read_source(Source(name="s", paths=(str(tmp_path / "a.csv"),), **KEYS)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.line for record in records] == [2, 500_003]
    assert peak < 20_000_000


@pytest.mark.parametrize("start", ["query,target,score\n", ""])
def test_a_line_that_breaks_off_before_its_score_is_no_positive(tmp_path: Path, start: str) -> None:
    records = read(tmp_path, "a.csv", f"{start}a,b,1\nc,d\ne\n", header=bool(start), **KEYS)
    assert rules(records) == [None, "missing_field", "missing_field"]


def test_a_line_of_more_cells_than_the_header_is_not_shifted(tmp_path: Path) -> None:
    content = 'query,target\n"Hello, you",b\nHello, you,b\nc,d,, \n'
    records = read(tmp_path, "a.csv", content, **KEYS)
    assert rules(records) == [None, "broken_csv", None]
    assert [(p.query, p.target) for r in records for p in r.pairs] == [("Hello, you", "b"), ("c", "d")]


def test_a_name_that_stands_twice_is_no_column_to_read(tmp_path: Path) -> None:
    content = "query,target,score,note,score,note\na,b,1,x,0,y\nc,d,1,,1,z\n"
    records = read(tmp_path, "a.csv", content, **KEYS)
    assert rules(records) == ["ambiguous_column", None]
    assert records[0].rejection is not None
    assert "'score'" in records[0].rejection.reason
    assert "2 and 4" in records[0].rejection.reason
    (first, _) = read(tmp_path, "a.csv", content, columns={"score": 4}, **KEYS)
    assert first.pairs[0].score == 0


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quoted_cell_may_be_long(tmp_path: Path, end: str) -> None:
    text = ("word, " * 1000 + end) * 30
    records = read(tmp_path, "a.csv", f'query,target\n"{text}",b\nc,d\n', **KEYS)
    assert [record.pairs[0].query for record in records] == [text, "c"]


def test_a_quoted_cell_may_have_many_lines(tmp_path: Path) -> None:
    for many in (["line"] * 300, ["one, two"] * 150, ["one, two", "three"] * 150):
        text = "\n".join(many)
        records = read(tmp_path, "a.csv", f'query,target\n"{text}",b\nc,d\n', **KEYS)
        assert [record.pairs[0].query for record in records] == [text, "c"]


def test_a_stray_quote_takes_no_rows_of_a_tsv_along(tmp_path: Path) -> None:
    rows = [
        '"Hôm nay\tToday',
        *["Mai\tTomorrow"] * 20,
        "Mai",
        'hết"\tend',
        'c\t"d',
        'e\tf"',
        '"x"\t"y\nz"',
        "a\tb",
    ]
    for start in ("query\ttarget\n", ""):
        records = read(tmp_path, "a.tsv", start + "\n".join(rows), header=bool(start), **KEYS)
        assert [(pair.query, pair.target) for record in records for pair in record.pairs] == [
            ('"Hôm nay', "Today"), *[("Mai", "Tomorrow")] * 20, ('hết"', "end"), ("c", '"d'), ("e", 'f"'),
            ("x", "y\nz"), ("a", "b"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("Xin chào, bạn;Hello friend;1\na;b;0\nc, d;e;0\n", False),
        ("Xin chào, bạn\tHello friend\t1\na\tb\t0\nc, d\te\t0\n", False),
        ("query;target;score\nXin chào, bạn;Hello friend;1\na;b;0\nc, d;e;0\n", True),
        ('query;target;score\n"Xin chào, bạn";"Hello friend";1\n"a";"b";0\n"c, d";"e";0\n', True),
        ('"Xin chào, bạn",Hello friend,1,"x;\n;\n;"\n"a",b,0,"y;\n;\n;"\n"c, d",e,0,\n', False),
    ],
)
def test_the_mark_that_all_lines_have_as_often_is_the_delimiter(
    tmp_path: Path, content: str, header: bool
) -> None:
    records = read(tmp_path, "a.csv", content, header=header, **KEYS)
    assert [(pair.query, pair.target) for record in records for pair in record.pairs] == [
        ("Xin chào, bạn", "Hello friend"), ("a", "b"), ("c, d", "e"),
    ]  # fmt: skip


def test_a_backslash_may_stand_before_a_quote_in_a_cell(tmp_path: Path) -> None:
    content = 'query,target\n"Anh nói \\"đi, thôi\\" \\alpha",b\n"C:\\",d\n5\\",e\n'
    records = read(tmp_path, "a.csv", content, **KEYS)
    assert [record.pairs[0].query for record in records] == ['Anh nói "đi, thôi" \\alpha', "C:\\", '5\\"']


def test_quotes_in_a_tsv_may_be_plain_characters(tmp_path: Path) -> None:
    content = 'query\ttarget\tscore\n"Hi," he said\tb\t1\n"never closed\tb\t1\n'
    records = read(tmp_path, "a.tsv", content, **KEYS)
    assert [record.pairs[0].query for record in records] == ['"Hi," he said', '"never closed']
