"""What a run and an evaluation name of their workspace is found again where the workspace was moved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.evaluation.test_promotion import evaluation, pool
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.evaluation.results import read_evaluation
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.training.run_file import read_run, write_run
from vipolyqwen_core.workspace import Workspace, current_workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace of this process."""
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path / "before"))
    return current_workspace()


def a_run(workspace: Workspace, **places: Path) -> TrainingRun:
    here = {
        "backbone": workspace.backbones / "tiny",
        "training_set": workspace.training_set,
        "output": workspace.runs / "demo-1",
    }
    return TrainingRun(recipe=demo(), run_name="demo-1", **{**here, **places})


def test_a_run_of_a_workspace_that_was_moved_names_its_new_place(
    tmp_path: Path, workspace: Workspace
) -> None:
    before, after = workspace, Workspace(tmp_path / "deeper" / "after")
    path = write_run(a_run(before))
    assert read_run(path) == a_run(before)
    assert str(tmp_path) not in path.read_text()
    after.home.parent.mkdir()
    before.home.rename(after.home)
    assert read_run(after.runs / "demo-1" / "run.json") == a_run(after)


def test_paths_outside_the_workspace_and_hub_ids_stay(tmp_path: Path, workspace: Workspace) -> None:
    run = a_run(workspace, backbone=Path("Qwen/Qwen2-VL-2B-Instruct"), training_set=tmp_path / "shared")
    assert read_run(write_run(run)) == run
    assert json.loads((run.output / "run.json").read_text())["training_set"] == str(tmp_path / "shared")


@pytest.mark.parametrize("name", ["elsewhere", "runs/demo-1", "curated/runs"])
def test_a_run_outside_the_workspace_keeps_its_paths(tmp_path: Path, workspace: Workspace, name: str) -> None:
    run = a_run(workspace, output=tmp_path / name)
    written = json.loads(write_run(run).read_text())
    assert written["output"] == str(tmp_path / name)
    assert written["training_set"] == str(workspace.training_set)
    assert read_run(run.output / "run.json") == run


def test_a_relative_directory_is_found_from_anywhere(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("project", "models/qwen", "data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    path = write_run(a_run(workspace, backbone=Path("../models/qwen"), training_set=Path("../data")))
    monkeypatch.chdir(tmp_path)
    assert read_run(path).backbone.samefile(tmp_path / "models" / "qwen")
    assert read_run(path).training_set.samefile(tmp_path / "data")


def test_a_path_below_the_folder_of_its_file_is_read_back(workspace: Workspace) -> None:
    run = a_run(workspace, training_set=workspace.runs / "demo-1" / "training_set")
    path = write_run(run)
    assert json.loads(path.read_text())["training_set"] == "./training_set"
    assert read_run(path) == run
    found = replace(evaluation(pool()), model=str(run.output / "model"), champion=str(run.output))
    assert read_evaluation(found.write(run.output)) == found


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config .*run\.json does not exist"):
        read_run(tmp_path / "run.json")


def test_an_evaluation_names_its_models_in_the_new_place(tmp_path: Path, workspace: Workspace) -> None:
    before, after = workspace, Workspace(tmp_path / "after")
    found = replace(
        evaluation(pool()), model=str(before.runs / "demo-1" / "model"), champion=str(before.models / "v1")
    )
    path = found.write(before.evaluations / "ablation" / "mean")
    assert read_evaluation(path) == found
    assert str(tmp_path) not in path.read_text()
    before.home.rename(after.home)
    moved = read_evaluation(after.evaluations / "ablation" / "mean")
    assert moved.model == str(after.runs / "demo-1" / "model")
    assert moved.champion == str(after.models / "v1")
