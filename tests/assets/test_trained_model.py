"""trained_model: what a person is told when training fails, and what a training set must hold."""

import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from mlflow import MlflowClient

from assets.registry import CHAMPION_TAG
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import refuse_unfit_data, trained_model, training_failure
from orchestration.explanation import explain_failure
from quality.polars_tables import polars_schema
from vipolyqwen_core.config import TrainingRun, to_json
from vipolyqwen_core.contract import PLAN_INDEX, REGISTERED_MODEL, TRAINING
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.training import launch
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


def training_set(place: Workspace, train: str, evaluation: str) -> None:
    """A row that trains and two that evaluate, which show these pictures."""
    folder = place.training_set
    details = {"sources": {"s": {"version": "1", "pairs_in": 3}}}
    StageSummary("training_set", "", "1", pairs_in=3, pairs_out=3, rejected={}, details=details).write(folder)
    schema = polars_schema(TRAINING)
    for split, picture, num_rows in (("train", train, 1), ("eval", evaluation, 2)):
        row: dict[str, object] = dict.fromkeys(schema.names())
        row |= {"component": picture, "split": split, "source": "s", "language": "vi"}
        row |= {"task": "vqa_single", "prefix": "vqa_single", "query": "<image>q", "target": "t"}
        row |= {
            "query_images": [picture],
            "query_image_rows": [0],
            "target_images": [],
            "target_image_rows": [],
        }
        row |= {"query_tokens": 3, "target_tokens": 1, "query_patches": 4, "target_patches": 0}
        row |= {"positive_hash": 0, "file": "s.jsonl", "line": 1, "item": 0}
        rows = [
            row | {"sample_id": f"{split} {number}", "query_hash": 1 + number, "target_hash": 11 + number}
            for number in range(num_rows)
        ]
        pl.DataFrame(rows, schema=schema).write_ipc(folder / f"{split}.arrow")
    index = polars_schema(PLAN_INDEX)
    pl.DataFrame([dict.fromkeys(index.names())], schema=index).write_parquet(folder / "index.parquet")
    pl.DataFrame(schema={"source": pl.String}).write_parquet(folder / "ledger.parquet")


def test_a_leaking_training_set_is_refused_in_a_later_run_too(tmp_path: Path) -> None:
    training_set(Workspace(tmp_path), "picture", "picture")
    with pytest.raises(dg.Failure) as refused:
        refuse_unfit_data(Workspace(tmp_path), demo())
    assert refused.value.description == (
        "the training set must not train: no_leak: 1 components stand on both sides; "
        "1 pictures stand on both sides"
    )


def told_by_the_asset(home: Path, backbone: Path) -> str:
    """Materialise the asset, which fails; the sentence that a person reads."""
    training_set(Workspace(home), "one", "two")
    (home / "recipe.json").write_text(to_json(replace(demo(), backbone=str(backbone))))
    (home / "manifest.yaml").write_text("sources: [{name: s, format: owner_jsonl, paths: s.jsonl}]")
    result = dg.materialize(
        [trained_model],
        resources={
            "workspace": WorkspaceResource(home=str(home)),
            "manifest": ManifestResource(path=str(home / "manifest.yaml"), home=str(home)),
            "recipe": RecipeResource(name=str(home / "recipe.json")),
            "mlflow": MlflowResource(home=str(home)),
            "pipes": dg.PipesSubprocessClient(),
        },
        raise_on_error=False,
    )
    return explain_failure(result.all_events, None)


def test_a_training_process_that_fails_fails_the_asset(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run: TrainingRun) -> list[str]:
        place = run.output / "errors" / "rank0.txt"
        return [
            sys.executable,
            "-c",
            f"import pathlib; place = pathlib.Path({str(place)!r}); place.parent.mkdir(parents=True)\n"
            "place.write_text('Traceback ...\\nOSError: disk full')\nraise SystemExit(1)",
        ]

    monkeypatch.setattr(launch, "launch_command", failing)
    assert told_by_the_asset(tmp_path, tiny_backbone) == (
        "trained_model: training failed on rank0: OSError: disk full"
    )


def test_nothing_is_trained_while_no_version_is_champion_any_more(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(run: TrainingRun) -> list[str]:
        raise AssertionError("launched")

    monkeypatch.setattr(launch, "launch_command", launched)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model(REGISTERED_MODEL)
    client.create_model_version(REGISTERED_MODEL, "file:///run", tags={CHAMPION_TAG: "2026-01-01"})
    assert "give the alias back with `vipolyqwen rollback 1`" in told_by_the_asset(tmp_path, tiny_backbone)
