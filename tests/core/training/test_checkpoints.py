"""A checkpoint is whole or not there; damage is seen; loading gives back every bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vipolyqwen_core.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Progress,
    initialise_optimizer,
    read_progress,
)

TRAJECTORY = {"data": "d1", "optimizer": {"learning_rate": 0.1}}


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[1].weight]},
            {"params": [model[0].bias, model[1].bias], "weight_decay": 0},
        ]
    )
    initialise_optimizer(optimizer)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, only_first: bool = False) -> None:
    for step in steps:
        torch.manual_seed(step)
        layers = model[0] if only_first else model
        layers(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_a_loaded_run_continues_to_the_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, trajectory=TRAJECTORY)
    model, optimizer = make()
    train(model, optimizer, range(2), only_first=True)  # the second layer has no gradient yet
    path = checkpoints.save(Progress(step=2, running_losses={"ocr": 0.1}, pairs=9), model, optimizer)
    train(model, optimizer, range(2, 6))
    resumed, its_optimizer = make(seed=1)
    progress = checkpoints.load(path, resumed, its_optimizer)
    assert progress == Progress(step=2, running_losses={"ocr": 0.1}, pairs=9)
    train(resumed, its_optimizer, range(2, 6))
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, trajectory=TRAJECTORY)
    model, optimizer = make()
    for step in (1, 2, 3, 4):
        checkpoints.save(Progress(step=step, best_step=1), model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_3", "step_4"]


def test_saving_after_a_resume_from_an_earlier_step_removes_the_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5, trajectory=TRAJECTORY)
    model, optimizer = make()
    for step in (1, 2, 3):
        checkpoints.save(Progress(step=step), model, optimizer)
    checkpoints.save(Progress(step=2, pairs=7), model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_2"]
    assert read_progress(tmp_path / "step_2").pairs == 7


def test_a_truncated_checkpoint_is_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    model, optimizer = make()
    assert checkpoints.latest() is None
    for step in (1, 10):
        checkpoints.save(Progress(step=step), model, optimizer)
    shard = next((tmp_path / "step_10").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert checkpoints.latest() == tmp_path / "step_1"
    assert "step_10" in caplog.text
    assert f"{shard.name} has" in caplog.text
    (tmp_path / "step_1" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        checkpoints.latest()


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    (tmp_path / ".step_5.partial").mkdir()
    assert checkpoints.latest() is None
    checkpoints.save(Progress(step=6), *make())
    assert [path.name for path in tmp_path.iterdir()] == ["step_6"]
    assert json.loads((tmp_path / "step_6" / "state.json").read_text())["progress"]["step"] == 6


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    path = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY).save(Progress(step=1), *make())
    other = Checkpoints(tmp_path, keep=3, trajectory={"data": "d1", "optimizer": {"learning_rate": 0.2}})
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.1 there, 0.2 now"):
        other.load(path, *make())


FULL_DISK = """
import resource, sys
from pathlib import Path
from torch import nn
import torch
from vipolyqwen_core.training.checkpoints import CheckpointError, Checkpoints, Progress
model = nn.Linear(300, 300)
optimizer = torch.optim.AdamW(model.parameters())
checkpoints = Checkpoints(Path(sys.argv[1]), keep=3, trajectory={})
checkpoints.save(Progress(step=1), model, optimizer)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # a file that cannot grow, as on a full disk
try:
    checkpoints.save(Progress(step=2), model, optimizer)
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    assert "step_2 could not be written" in done.stdout
    assert "GB are free there" in done.stdout
    assert "saved before: step_1" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY).latest() == tmp_path / "step_1"
