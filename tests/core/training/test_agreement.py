"""Ranks that would train different things, or write to different folders, refuse to start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from tests.core.distributed import run_on_ranks
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.training import agreement
from vipolyqwen_core.training.setup import prepare


def refusals(cases: list[tuple[TrainingRun, TrainingRun]]) -> list[str]:
    """What this rank is told at the start of each case, which has a run for each rank."""
    agreement.SECONDS_TO_APPEAR = 0.1
    told = []
    for runs in cases:
        try:
            prepare(runs[dist.get_rank()])
            told.append("")
        except ValueError as error:
            told.append(str(error))
    return told


def with_training(run: TrainingRun, **settings: object) -> TrainingRun:
    training = replace(run.recipe.training, **settings)  # type: ignore[arg-type]
    return replace(run, recipe=replace(run.recipe, training=training))


@pytest.fixture
def other_rows(training_set: Path, tmp_path: Path) -> Path:
    """A copy of the training set that lost a row of its index on the way."""
    folder = shutil.copytree(training_set, tmp_path / "other_rows")
    index = pq.read_table(folder / "index.parquet")
    pq.write_table(index.slice(1), folder / "index.parquet")
    return folder


@pytest.fixture
def no_pictures(training_set: Path, tmp_path: Path) -> Path:
    """A copy of the training set whose pictures were left behind."""
    folder = shutil.copytree(training_set, tmp_path / "no_pictures")
    pinned = {"shop": {"path": str(folder / "left_behind.lance"), "version": 1}}
    (folder / "images.json").write_text(json.dumps(pinned), encoding="utf-8")
    return folder


def test_two_machines_of_one_rank_start_unless_one_of_them_has_something_else(
    make_run, other_rows, no_pictures, tmp_path
):
    run = make_run(training={"distribution": "data_parallel", "processes": 1})
    faster = replace(run.recipe.optimizer, learning_rate=0.5)
    others = {
        "": with_training(run, loader_workers=1),
        "optimizer.learning_rate: 0.001 on rank 0, 0.5 on rank 1": replace(
            run, recipe=replace(run.recipe, optimizer=faster)
        ),
        "training.save_steps: 2 on rank 0, 3 on rank 1": with_training(run, save_steps=3),
        "index.parquet: ": replace(run, training_set=other_rows),
        f"{no_pictures / 'left_behind.lance'} does not exist": replace(run, training_set=no_pictures),
        f"no plan index {tmp_path / 'lacks'}": replace(run, training_set=tmp_path / "lacks"),
        f"rank 1 sees another folder {tmp_path / 'elsewhere'} than rank 0": replace(
            run, output=tmp_path / "elsewhere"
        ),
    }
    first, second = run_on_ranks(
        refusals, 2, [(run, other) for other in others.values()], timeout_seconds=120
    )
    assert first == second
    for expected, told in zip(others, first, strict=True):
        assert expected in told
        assert bool(expected) == bool(told)
    assert not list(run.output.iterdir())


def test_the_mark_of_a_rank_that_was_killed_goes_at_the_next_start(make_run):
    run = make_run()
    run.output.mkdir()
    (run.output / ".shared.0123abcd").touch()
    prepare(run)
    assert not list(run.output.iterdir())
