"""Copies of rows: each that is dropped stands for a row that stays, and nothing else is dropped."""

import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.intake import INTAKE_SCHEMA
from quality.row_duplicates import find_copies, find_duplicates
from tests.quality.conftest import sentence
from tests.quality.test_duplicates import true_jaccard
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.hashing import pair_hashes

SETTINGS = CurationSettings()

edits = st.sampled_from(["", "", " và", " 7", " <image>", "!", " tôi nghĩ là như vậy đó bạn ạ"])
texts = st.builds(lambda number, words, end: sentence(number, words) + end,
                  st.integers(0, 3), st.sampled_from([3, 14, 30]), edits)  # fmt: skip
a_row = st.fixed_dictionaries(
    {
        "task": st.sampled_from([Task.INSTR, Task.OCR]),
        "query": texts,
        "target": texts,
        "query_images": st.sampled_from([[], ["a"], ["b"]]),
        "score": st.sampled_from([None, 0.5]),
    }
)


def table(rows: list[dict]) -> pl.DataFrame:
    full = []
    for line, row in enumerate(rows, 1):
        history = [Turn(**turn) for turn in row.get("history") or ()]
        identity, query, target = pair_hashes(
            row["task"],
            row["query"],
            row["target"],
            row["query_images"],
            row.get("target_images", ()),
            history,
        )
        known = {"sample_id": identity, "query_hash": query, "target_hash": target}
        full.append(
            {
                "target_images": [],
                **row,
                **known,
                "task": row["task"].value,
                "source": "s",
                "file": "f",
                "line": line,
                "item": 0,
            }
        )
    frame = pl.DataFrame(full, schema=INTAKE_SCHEMA)
    return frame.with_columns(row=pl.int_range(frame.height, dtype=pl.Int64))


PLAIN = {
    "task": Task.INSTR,
    "query": sentence(1, 30),
    "target": sentence(2, 30),
    "query_images": [],
    "score": None,
}


def found(*changes: dict) -> pl.DataFrame:
    """Which of some rows, PLAIN but for a change each, are dropped."""
    rows = [{**PLAIN, **change} for change in changes]
    with tempfile.TemporaryDirectory() as folder:
        return find_duplicates(table(rows).lazy(), SETTINGS, Path(folder) / "bands")


def copies(*changes: dict) -> dict[int, int]:
    """Which of these rows is dropped for which."""
    return dict(found(*changes).select("row", "kept").iter_rows())


@pytest.mark.parametrize(
    "label",
    [
        {"score": 0.5},
        {"group_id": "g"},
        {"positive_key": "k"},
        {"negatives": [{"text": "sai", "images": []}]},
    ],
)
def test_a_copy_with_a_label_stays_even_for_a_longer_one(label: dict) -> None:
    assert copies({}, label) == {0: 1}
    assert copies({"query": PLAIN["query"] + "!"}, label) == {0: 1}


def test_of_equally_labelled_copies_the_longer_stays_then_the_earlier() -> None:
    for side in ("query", "target"):
        assert copies({}, {side: PLAIN[side] + "!"}) == {0: 1}
    assert copies({}, {}) == {1: 0}
    assert copies({"query": PLAIN["query"] + "?"}, {"query": PLAIN["query"] + "!"}) == {1: 0}


@pytest.mark.parametrize("query", [PLAIN["query"], PLAIN["query"] + "!"])
def test_the_copy_of_a_benchmark_goes_however_long_and_well_labelled_it_is(query: str) -> None:
    labels = {
        "score": 0.5,
        "group_id": "g",
        "positive_key": "k",
        "negatives": [{"text": "sai", "images": []}],
    }
    rows = table([{**PLAIN, **labels, "query": query}, PLAIN])
    rows = rows.with_columns(source=pl.Series(["benchmark", "corpus"])).lazy()
    for last, dropped in ((["benchmark"], (0, 1)), ([], (1, 0))):
        with tempfile.TemporaryDirectory() as folder:
            found = find_copies(rows, SETTINGS, Path(folder) / "bands", last)
        assert found.select("row", "kept").rows() == [dropped]


def test_an_exact_copy_names_the_near_one_that_stays_in_the_end() -> None:
    assert copies({}, {}, {"query": PLAIN["query"] + "!"}) == {0: 2, 1: 2}


def test_the_reason_names_the_row_that_stays_and_how_near_it_is() -> None:
    dropped = found({}, {}, {"query": PLAIN["query"] + "!", "score": 0.5})
    exact, near = dropped.sort("rule")["reason"]
    assert exact.endswith(" It is f, line 3 of source s.")
    similarity = round(true_jaccard(PLAIN["query"], PLAIN["query"] + "!"), 3)
    assert near.endswith(f" It is f, line 3 of source s, similarity {similarity}.")
    assert set(dropped["value"]) == {
        table([{**PLAIN, "query": PLAIN["query"] + "!", "score": 0.5}])["sample_id"][0]
    }


@pytest.mark.parametrize(
    "change",
    [
        {"task": Task.OCR},
        {"query_images": ["a"]},
        {"target_images": ["a"]},
        {"query": PLAIN["query"] + " 7"},
        {"query": PLAIN["query"] + " <image>"},
        {"target": PLAIN["target"] + " 7"},
        {"target": PLAIN["target"] + " <image>"},
        {"history": [{"role": "user", "text": "Chào bạn."}]},
    ],
)
def test_rows_that_differ_in_more_than_wording_are_no_copies(change: dict) -> None:
    assert copies({}, change) == {}


def test_dialogues_that_differ_in_a_number_before_are_no_copies() -> None:
    def told(number: int) -> dict:
        return {"history": [{"role": "user", "text": f"{sentence(5, 30)} {number} năm."}]}

    assert copies(told(3), told(4)) == {}
    assert copies(told(3), {"history": [{"role": "user", "text": f"{sentence(5, 30)} 3 năm!"}]}) == {1: 0}


def test_texts_with_more_placeholders_are_no_copies() -> None:
    one, two = ({"query": PLAIN["query"] + " <image>" * number} for number in (1, 2))
    assert copies(one, two) == {}


def test_short_texts_are_copies_only_where_they_are_equal() -> None:
    letters = "abcdefghijklmnopqrstuvwxyzăâđêôơ"
    assert len(letters) == SETTINGS.min_linking_chars
    assert copies({"target": letters}, {"target": letters[:-1] + "ư"}) == {1: 0}
    assert copies({"target": letters[1:]}, {"target": letters[1:-1] + "ư"}) == {}
    assert copies({"target": "Ừ thì vậy", "query": PLAIN["query"] + "!"}, {"target": "Ừ thì vậy"}) == {1: 0}


@settings(max_examples=30, deadline=None)
@given(st.lists(a_row, min_size=2, max_size=14))
def test_a_row_is_dropped_only_for_a_copy_that_stays(rows: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dropped = find_duplicates(table(rows).lazy(), SETTINGS, Path(folder) / "bands")
    gone = dict(dropped.select("row", "kept").iter_rows())
    assert dropped["row"].is_unique().all()
    assert not set(gone.values()) & set(gone)
    for row, kept in gone.items():
        one, two = rows[row], rows[kept]
        assert (one["task"], one["query_images"]) == (two["task"], two["query_images"])
        for side in ("query", "target"):
            a, b = one[side].lower(), two[side].lower()
            assert a == b or (
                min(len(a), len(b)) >= SETTINGS.min_linking_chars and true_jaccard(a, b) >= 0.85
            )
            assert [digit for digit in a if digit.isdigit()] == [digit for digit in b if digit.isdigit()]
            assert a.count("<image>") == b.count("<image>")
    stay = [row for number, row in enumerate(rows) if number not in gone]
    keys = [(row["task"], row["query"], row["target"], tuple(row["query_images"])) for row in stay]
    assert len(set(keys)) == len(keys)


def test_dialogues_with_other_earlier_turns_are_no_copies() -> None:
    def told(text: str) -> dict:
        return {"history": [{"role": "user", "text": text}]}

    for one, other in (
        ("Chào bạn.", "Trời mưa."),  # too short for a signature
        ("<image>" + sentence(5, 30), "<image>" * 2 + sentence(5, 30)),
    ):
        assert copies(told(one), told(other)) == {}
        assert copies(told(one), told(one)) == {1: 0}
