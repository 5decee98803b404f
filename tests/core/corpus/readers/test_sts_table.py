"""Tables of two texts and a score, whatever the file: which column is which, and rows without a score."""

from pathlib import Path
from typing import Any

import pytest

from tests.core.corpus.readers.reading import jsonl, read, rules
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format
from vipolyqwen_core.corpus.readers import RawPair, RawSide

KEYS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sentence1,sentence2,score\na,b,3\n"),
        ("a.csv", "\ufeffsentence1;sentence2;score\r\na;b;3\r\n"),
        ("a.csv", "score,sentence2, sentence1\n3,b,a\n"),
        ("a.tsv", "text1\ttext2\tlabel\na\tb\t3,\n"),
        ("a.tab", "text1\ttext2\tlabel\tnote, if any\na\tb\t3\t\n"),
        ("a.txt", "text1\ttext2\tlabel\tnote, if any\na\tb\t3\t\n"),
        ("a.csv", "\n \ntext1|text2|label\na|b|3\n"),
        ("a.jsonl", '{"query": "a", "target": "b", "score": "3,0"}'),
        ("a.json", '[{"s1": "a", "s2": "b", "similarity": 3}]'),
        ("a.json", '{"info": {"v": 1}, "data": [{"s1": "a", "s2": "b", "score": 3}]}'),
        ("a.json", '{"s1": "a", "s2": "b", "score": 3}\n'),
        ("a.json", '{"s1": "a", "s2": "b", "score": 3}\n{"s1": "a", "s2": "b", "score": 3}\n'),
    ],
)
def test_each_table_gives_the_pair_scaled(tmp_path: Path, name: str, content: str) -> None:
    records = read(tmp_path, name, content, score_range=(1.0, 5.0), **KEYS)
    pair = RawPair(Task.TEXT_PAIR, "a", "b", score=0.5)
    assert [record.pairs for record in records] == [(pair,)] * max(1, content.count('"s1"'))


def test_what_is_not_a_number_is_no_text(tmp_path: Path) -> None:
    lines = '{"query": NaN, "target": "b"}\n{"query": "a", "target": Infinity}\n{"query": 2.5, "target": 1}'
    records = read(tmp_path, "a.jsonl", lines, **KEYS)
    assert rules(records) == ["missing_field", "wrong_type", None]
    assert (records[2].pairs[0].query, records[2].pairs[0].target) == ("2.5", "1")


def test_declared_keys_come_along(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.csv", "query,target,group_id,positive_key\na,b,g,k\n", **KEYS)
    assert record.pairs == (RawPair(Task.TEXT_PAIR, "a", "b", group_id="g", positive_key="k"),)


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("c", ["c"]),
        ('["c", {"text": "d"}]', ["c", "d"]),
        ("[c] d", ["[c] d"]),
        ("[1]", ["[1]"]),
        ("", []),
    ],
)
def test_a_cell_may_spell_several_negatives(tmp_path: Path, cell: str, texts: list[str]) -> None:
    (record,) = read(tmp_path, "a.tsv", f"query\ttarget\tnegatives\na\tb\t{cell}\n", **KEYS)
    assert record.pairs[0].negatives == tuple(RawSide(text) for text in texts)


def test_a_place_in_a_list_that_is_too_short_is_a_missing_field(tmp_path: Path) -> None:
    rows = jsonl({"query": "a", "texts": ["b"]}, {"query": "a", "texts": []})
    records = read(tmp_path, "a.jsonl", rows, columns={"target": "texts.0"}, **KEYS)
    assert rules(records) == [None, "missing_field"]


def test_a_table_of_two_texts_has_no_scores(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.csv", "query,target\na,b\n", **KEYS)
    assert record.pairs[0].score is None


def test_a_field_without_a_value_is_told_from_one_that_is_absent(tmp_path: Path) -> None:
    rows = jsonl({"query": "a", "target": "b"}, {"query": "a", "target": None}, {"query": "a"})
    records = read(tmp_path, "a.jsonl", rows, **KEYS)
    values = [record.rejection.value for record in records if record.rejection is not None]
    assert values == ["fields: query, target (empty)", "fields: query"]


@pytest.mark.parametrize("keys", [{"score_range": (0.0, 5.0)}, {"columns": {"score": "score"}}])
def test_a_row_without_the_score_that_the_manifest_tells_of_is_no_positive(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    rows = jsonl({"query": "a", "target": "b", "score": 1}, {"query": "a", "target": "c", "sim": 0})
    records = read(tmp_path, "a.jsonl", rows, **keys, **KEYS)
    assert rules(records) == [None, "missing_field"]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", "a\tb\t0.5\n", {"score": None}),
        ("a.tsv", "a\tb\tc\n", {"query": 0, "target": 1, "negatives": 2}),
        ("a.tsv", "7\t9\ta\tb\n", {"query": 2, "target": 3}),
        ("a.csv", "text1,text2,label\na,b,sport\n", {"score": None}),
        ("a.jsonl", '{"query": "a", "target": "b", "score": 1}', {"score": None}),
    ],
)
def test_what_the_manifest_says_is_no_score_is_none(
    tmp_path: Path, name: str, content: str, columns: dict[str, Any]
) -> None:
    header = name != "a.tsv"
    (record,) = read(tmp_path, name, content, header=header, columns=columns, **KEYS)
    assert [(pair.query, pair.target, pair.score) for pair in record.pairs] == [("a", "b", None)]


def test_a_column_that_is_a_key_too_stays_what_it_is(tmp_path: Path) -> None:
    keys = {"header": False, "columns": {"positive_key": 2, "group_id": 0}}
    (record,) = read(tmp_path, "a.tsv", "a\tb\t0.5\n", **keys, **KEYS)
    assert [(pair.query, pair.score, pair.group_id) for pair in record.pairs] == [("a", 0.5, "a")]


def test_several_targets_are_a_pair_each_but_for_one_score(tmp_path: Path) -> None:
    """As FlagEmbedding has them; its trainer fills up with blank negatives."""
    rows = jsonl(
        {"query": "a", "pos": ["b", "c"], "neg": ["d", "", " "]},
        {"query": "a", "pos": [], "neg": ["d"]},
        {"query": "a", "pos": ["b", "c"], "score": 1},
    )
    records = read(tmp_path, "a.jsonl", rows, columns={"target": "pos", "negatives": "neg"}, **KEYS)
    assert rules(records) == [None, "missing_field", "wrong_type"]
    assert [(pair.query, pair.target, pair.negatives) for pair in records[0].pairs] == [
        ("a", target, (RawSide("d"),)) for target in ("b", "c")
    ]


def test_scores_are_read_as_files_spell_them(tmp_path: Path) -> None:
    rows = [
        ("a", "b", spelled)
        for spelled in (
            "1,",
            " 4.5 ",
            "2,5",
            "5;",
            "5.000001",
            "-1e-6",
            "-1",
            "5.01",
            "",
            "true",
            "1,2,3",
            "inf",
        )
    ]
    content = "\n".join("\t".join(row) for row in rows)
    keys = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR, "header": False, "score_range": (0.0, 5.0)}
    records = read(tmp_path, "a.tsv", content, **keys)
    assert [record.pairs[0].score if record.pairs else rules([record])[0] for record in records] == [
        pytest.approx(0.2), pytest.approx(0.9), pytest.approx(0.5), 1.0, 1.0, 0.0,
        *["score_out_of_range"] * 2, *["score_not_a_number"] * 4,
    ]  # fmt: skip
