"""Copies of rows: each that is dropped stands for a row that stays, and nothing else is dropped."""

import tempfile
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.intake import INTAKE_SCHEMA
from quality.row_duplicates import find_duplicates
from tests.quality.conftest import sentence
from tests.quality.test_duplicates import true_jaccard
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
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
        identity, query, target = pair_hashes(row["task"], row["query"], row["target"], row["query_images"])
        known = {"sample_id": identity, "query_hash": query, "target_hash": target, "target_images": []}
        full.append(
            {**row, **known, "task": row["task"].value, "source": "s", "file": "f", "line": line, "item": 0}
        )
    frame = pl.DataFrame(full, schema=INTAKE_SCHEMA)
    return frame.with_columns(row=pl.int_range(frame.height, dtype=pl.Int64))


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
