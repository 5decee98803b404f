"""The check of an export sees each way in which table or Parquet may not hold the training set."""

from collections.abc import Callable
from pathlib import Path

import lancedb
import polars as pl
import pytest

from assets.findings import export_is_complete
from tests.core.small_training_set import some_pairs, write_training_set
from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.workspace import Workspace

SIDES = 2 * len(some_pairs())


@pytest.fixture
def workspace(tmp_path: Path, tiny_model_dir: Path) -> Workspace:
    place = Workspace(tmp_path)
    write_training_set(place.training_set, some_pairs())
    export(place.training_set, tiny_model_dir, "1", place, ExportSettings(batch_tokens=2048))
    return place


def test_an_export_that_was_just_made_is_complete(workspace: Workspace) -> None:
    found = export_is_complete(workspace, demo())
    assert found.passed
    assert (found.facts["expected"], found.facts["rows in the table"]) == (SIDES, SIDES)


def of_another_pair(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(sample_id=pl.concat([pl.Series(["0" * 32]), rows["sample_id"][1:]]))


def one_twice(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows[:1], rows[:1], rows[2:]])


def of_another_side(rows: pl.DataFrame) -> pl.DataFrame:
    sides = rows["side"].to_list()
    turned = {"query": "target", "target": "query"}[sides[0]]
    return rows.with_columns(side=pl.Series([turned, *sides[1:]]))


def one_too_long(rows: pl.DataFrame) -> pl.DataFrame:
    first = (rows["embedding"][0] * 1.1).to_list()
    return rows.with_columns(
        embedding=pl.Series([first, *rows["embedding"].to_list()[1:]], dtype=rows.schema["embedding"])
    )


@pytest.mark.parametrize(
    ("damage", "off"),
    [
        (of_another_pair, {"missing": 1, "not expected": 1}),
        (one_twice, {"missing": 1}),
        (of_another_side, {"missing": 1}),
        (one_too_long, {"vectors off": 1}),
        (lambda rows: rows[1:], {"missing": 1, "rows in Parquet": SIDES - 1}),
    ],
)
def test_parquet_that_is_not_as_it_should_be_fails(
    workspace: Workspace, damage: Callable[[pl.DataFrame], pl.DataFrame], off: dict[str, int]
) -> None:
    file = workspace.exports / "1" / "embeddings.parquet"
    damage(pl.read_parquet(file)).write_parquet(file)
    found = export_is_complete(workspace, demo())
    whole = {"expected": SIDES, "rows in Parquet": SIDES, "rows in the table": SIDES}
    assert not found.passed
    assert found.facts == whole | {"missing": 0, "not expected": 0, "vectors off": 0} | off


def test_a_table_that_lacks_a_row_fails(workspace: Workspace) -> None:
    sample = pl.read_parquet(workspace.exports / "1" / "embeddings.parquet")["sample_id"][0]
    lancedb.connect(workspace.lancedb).open_table("embeddings").delete(f"sample_id = '{sample}'")
    found = export_is_complete(workspace, demo())
    assert not found.passed
    assert found.facts["rows in the table"] == SIDES - 2
