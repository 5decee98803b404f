"""The ledger as a file."""

import itertools
from pathlib import Path

import polars as pl

from quality.ledger import LEDGER_SCHEMA, rejected_pairs, write_ledger


def test_the_file_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    """Sources may have files of one name, and a training set is known by the bytes of its ledger."""
    row = {"file": "data.jsonl", "line": 7, "item": 0, "reason": "because", "value": "?"}
    rows = [
        {**row, "source": "two", "sample_id": "a" * 32, "rule": "near_duplicate"},
        {**row, "source": "one", "sample_id": "b" * 32, "rule": "near_duplicate"},
        {**row, "source": "one", "sample_id": "b" * 32, "rule": "exact_duplicate"},
        {**row, "source": "one", "sample_id": "c" * 32, "rule": "exact_duplicate", "line": None},
    ]
    path, written = tmp_path / "ledger.parquet", set()
    for order in itertools.permutations(rows):
        write_ledger(rejected_pairs(pl.DataFrame(order, infer_schema_length=None), "training_set"), path)
        written.add(path.read_bytes())
    assert len(written) == 1
    found = pl.read_parquet(path)
    assert found.schema == LEDGER_SCHEMA
    assert found["source"].to_list() == ["one", "one", "one", "two"]
    assert found["line"].to_list() == [None, 7, 7, 7]
