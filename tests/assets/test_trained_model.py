"""trained_model: what a person is told when training fails, and what a training set must hold."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets.trained_model import refuse_unfit_data, training_failure
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def run(tmp_path: Path) -> TrainingRun:
    return TrainingRun(recipe=demo(), backbone=Path("b"), training_set=Path("t"), output=tmp_path)


def test_the_traceback_of_the_rank_is_told(run: TrainingRun) -> None:
    (run.output / "errors").mkdir()
    (run.output / "errors" / "rank0.txt").write_text("Traceback ...\n  line 3\nRuntimeError: out of luck\n")
    failure = training_failure(run)
    assert failure.description == "training failed on rank0: RuntimeError: out of luck"
    assert "line 3" in failure.metadata["traceback"].value


def test_a_rank_that_was_killed_is_told(run: TrainingRun) -> None:
    assert "killed" in training_failure(run).description


def test_a_leaking_training_set_is_refused_in_a_later_run_too(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    folder = place.training_set
    details = {"sources": {"s": {"version": "1", "pairs_in": 2}}}
    StageSummary("training_set", "", "", pairs_in=2, pairs_out=2, rejected={}, details=details).write(folder)
    row = {"component": "one", "query": "q", "target": "t", "source": "s"}
    lists = {"query_images": pl.List(pl.String), "target_images": pl.List(pl.String)}
    frame = pl.DataFrame(
        [{**row, "query_images": ["picture"], "target_images": [], "group_id": None}],
        schema_overrides={**lists, "group_id": pl.String},
    )
    for split in ("train", "eval"):
        frame.write_ipc(folder / f"{split}.arrow")
    pl.DataFrame(schema={"source": pl.String}).write_parquet(folder / "ledger.parquet")
    with pytest.raises(dg.Failure) as refused:
        refuse_unfit_data(place, demo())
    assert refused.value.description == (
        "the training set must not train: no_leak: 1 components stand on both sides; "
        "1 pictures stand on both sides"
    )
