"""What goes wrong while a run trains is named, and nothing that was saved is lost."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from torch import nn

from tests.core.distributed import run_on_ranks
from tests.core.training.interrupted import Killed, KilledAfter
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.pruning import leftovers, prune
from vipolyqwen_core.serving.model_card import ModelFacts
from vipolyqwen_core.training import train as train_module
from vipolyqwen_core.training.checkpoints import CheckpointError, Progress, missing_parts
from vipolyqwen_core.training.export_model import export_model
from vipolyqwen_core.training.ranks import is_first
from vipolyqwen_core.training.result import TrainingResult, read_result
from vipolyqwen_core.training.setup import Training
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import train
from vipolyqwen_core.workspace import Workspace

MakeRun = Callable[..., TrainingRun]


def losses(run: TrainingRun) -> list[tuple[str, float]]:
    """Samples and loss of each step."""
    return [(line["batch"], line["loss"]) for line in read_metrics(run.output / "metrics.jsonl")]


def saved(run: TrainingRun) -> list[str]:
    """Whole checkpoints; no other may be there."""
    folders = sorted((run.output / "checkpoints").iterdir())
    assert [missing_parts(folder) for folder in folders] == [None] * len(folders)
    return [folder.name for folder in folders]


@pytest.fixture
def whole(make_run: MakeRun) -> TrainingRun:
    """A run that nothing happened to."""
    run = make_run("whole")
    train(run, StopSignal())
    return run


@pytest.fixture
def restored_limit() -> Iterator[None]:
    """Lets files grow again after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullAfter(StopSignal):
    """From a step on no file can grow beyond some kilobytes, as on a full disk: not MLflow's store either."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.looks = steps + 1  # it is looked at before the first step, and after each

    def asked(self) -> bool:
        self.looks -= 1
        if self.looks == 0:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
        return False


@pytest.mark.usefixtures("restored_limit")
def test_a_full_disk_is_named_and_the_run_goes_on_from_what_was_saved(make_run: MakeRun, whole: TrainingRun):
    run = make_run()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match=r"step_4 could not be written .* saved before: step_2"):
        train(run, FullAfter(4))
    assert saved(run) == ["step_2"]
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(run, StopSignal())
    assert losses(run) == losses(whole)


def training_that_only_the_first_sees_finished(run: TrainingRun) -> TrainingResult:
    """As when another training ended while rank 0 waited for it: the others would have looked before."""
    if not is_first():
        train_module.read_result = lambda _: None
    return train(run, StopSignal())


def test_ranks_of_a_repeated_command_leave_together_where_the_first_finds_it_finished(whole: TrainingRun):
    expected = read_result(whole.output)
    told = run_on_ranks(training_that_only_the_first_sees_finished, 2, whole, timeout_seconds=60)
    assert told == [expected, expected]


def test_the_card_tells_of_the_data_that_were_trained_on(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The next training set may be there before the model is exported, days later."""
    run = make_run(training={"max_steps": 2})
    place = shutil.copytree(run.training_set, tmp_path / "training_set")

    def replaced_meanwhile(*given: object) -> None:
        index = pq.read_table(place / "index.parquet")
        pq.write_table(index.slice(0, 5), place / "index.parquet")
        stage = read_stage(place)
        assert stage is not None
        replace(stage, data_version="next").write(place)
        export_model(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "export_model", replaced_meanwhile)
    train(replace(run, training_set=place), StopSignal())
    card = (run.output / "model" / "README.md").read_text(encoding="utf-8")
    assert "training set version `data1`" in card
    assert "| shop | 48 |" in card


def words_of_an_export(run: TrainingRun) -> str:
    """What a rank says where the model cannot be written."""
    try:
        export_model(Accelerator(cpu=True), nn.Linear(2, 2), run, ModelFacts.of(run))
    except OSError as error:
        return str(error)
    return ""


def test_all_ranks_say_why_the_model_cannot_be_written(make_run: MakeRun):
    run = make_run()
    run.output.write_text("a file in the place of its folder")
    first, second = run_on_ranks(words_of_an_export, 2, run)
    assert first == second
    assert first.startswith(f"{run.output / 'model'} could not be written: [Errno 17] File exists")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    make_run: MakeRun, whole: TrainingRun, caplog: pytest.LogCaptureFixture, damage: str
):
    run = make_run()
    with pytest.raises(Killed):
        train(run, KilledAfter(5))
    assert saved(run) == ["step_2", "step_4"]
    shard = next((run.output / "checkpoints" / "step_4").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16  # one bit of one weight, or of one moment
    shard.write_bytes(content[:1000] if damage == "truncated" else content)
    train(run, StopSignal())
    found = "1000 of" if damage == "truncated" else "checksum"
    assert f"step_4: {shard.name} has {found}" in caplog.text
    assert losses(run) == losses(whole)
    assert saved(run) == ["step_2", "step_4", "step_6"]


def test_a_best_checkpoint_that_is_damaged_is_not_exported_and_what_helps_is_named(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run = make_run(training={"eval_steps": 100})
    export = train_module._finish

    def damaged(training: Training, progress: Progress, mlflow_run_id: str) -> TrainingResult:
        shard = next(training.checkpoints.path(2).glob("*.distcp"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 16
        shard.write_bytes(content)
        return export(training, replace(progress, best_step=2), mlflow_run_id)

    monkeypatch.setattr(train_module, "_finish", damaged)
    damage = r"best checkpoint, .*step_2, is damaged: .* has checksum .* or remove the folder"
    with pytest.raises(CheckpointError, match=damage):
        train(run, StopSignal())
    assert not (run.output / "model").exists()

    def with_best(training: Training, progress: Progress, mlflow_run_id: str) -> TrainingResult:
        return export(training, replace(progress, best_step=2), mlflow_run_id)

    monkeypatch.setattr(train_module, "_finish", with_best)
    shutil.rmtree(run.output / "checkpoints" / "step_2")
    assert train(run, StopSignal()).exported_step == 6
    assert "step_2, is gone: step 6 is exported" in caplog.text
    assert (run.output / "model").is_dir()


def test_a_picture_that_is_gone_is_named_and_the_run_goes_on_once_it_is_back(
    make_run: MakeRun, whole: TrainingRun, tmp_path: Path
):
    training_set = shutil.copytree(whole.training_set, tmp_path / "copy")
    pinned = json.loads((training_set / "images.json").read_text(encoding="utf-8"))
    pinned["shop"]["path"] = str(training_set / "shop.lance")
    (training_set / "images.json").write_text(json.dumps(pinned), encoding="utf-8")
    run = replace(make_run(), training_set=training_set)
    with pytest.raises(Killed):
        train(run, KilledAfter(3))
    pictures = training_set / "shop.lance" / "data"
    pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"pictures \[.*\] of source 'shop' cannot be read from"):
        train(run, StopSignal())
    assert saved(run) == ["step_2"]
    (tmp_path / "elsewhere").rename(pictures)
    train(run, StopSignal())
    assert losses(run) == losses(whole)


def test_a_pruned_run_is_as_finished_as_before(make_run: MakeRun, tmp_path: Path):
    workspace = Workspace(tmp_path / "home")
    run = make_run("home/runs/short", training={"epochs": 1})
    result = train(run, StopSignal())
    prune(leftovers(workspace), workspace)
    assert not (run.output / "checkpoints").exists()
    assert train(run, StopSignal()) == result
    assert (run.output / "model" / "config.json").is_file()


def test_a_finished_run_without_its_model_says_so_and_goes_on_from_its_checkpoint(make_run: MakeRun):
    run = make_run(training={"epochs": 1})
    result = train(run, StopSignal())
    shutil.rmtree(run.output / "model")
    with pytest.raises(ValueError, match=r"its model/ is gone: bring it back, or delete result\.json"):
        train(run, StopSignal())
    (run.output / "result.json").unlink()
    again = train(run, StopSignal())
    assert (again.steps, again.metrics["loss"]) == (result.steps, result.metrics["loss"])
    assert (run.output / "model" / "config.json").is_file()
