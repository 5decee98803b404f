"""A checkpoint is whole or not there; damage is seen; loading gives back every bit."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.core.distributed import run_on_ranks
from vipolyqwen_core.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Progress,
    initialise_optimizer,
    missing_parts,
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


def test_an_optimizer_whose_state_is_made_beforehand_steps_as_any_other():
    (model, optimizer), (fresh, _) = make(), make()
    weights, biases = ([getattr(layer, name) for layer in fresh] for name in ("weight", "bias"))
    other = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0}])
    train(model, optimizer, range(3))
    train(fresh, other, range(3))
    for one, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, expected)


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
    assert json.loads((tmp_path / "step_2" / "state.json").read_text())["progress"]["pairs"] == 7


def test_a_truncated_checkpoint_is_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    model, optimizer = make()
    assert checkpoints.latest() is None
    for step in (9, 10):
        checkpoints.save(Progress(step=step), model, optimizer)
    shard = next((tmp_path / "step_10").glob("*.distcp"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    assert checkpoints.latest() == tmp_path / "step_9"
    assert "step_10" in caplog.text
    assert f"{shard.name} has {size - 100} of {size} bytes" in caplog.text
    (tmp_path / "step_9" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        checkpoints.latest()


def flip(file: Path, place: int) -> None:
    """Change one bit of a file; its size stays."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["*.distcp", ".metadata", "state.json"])
def test_a_flipped_bit_is_seen(tmp_path, caplog, monkeypatch, name):
    monkeypatch.setattr("vipolyqwen_core.training.checkpoints.BLOCK_BYTES", 64)  # files of several blocks
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    model, optimizer = make()
    for step in (1, 10):
        checkpoints.save(Progress(step=step, pairs=8), model, optimizer)
    file = next((tmp_path / "step_10").glob(name))
    place = file.read_bytes().index(b'"pairs": 8') + 9 if name == "state.json" else file.stat().st_size // 2
    flip(file, place)
    assert checkpoints.latest() == tmp_path / "step_1"
    assert f"passed over checkpoint {tmp_path / 'step_10'}: {file.name} " in caplog.text
    flip(file, place)
    assert checkpoints.latest() == tmp_path / "step_10"


@pytest.mark.parametrize("content", ["[]", "null", '{"files": [], "checksums": {}}', '{"files": {}}'])
def test_a_state_that_was_not_written_here_is_damage(tmp_path, caplog, content):
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    for step in (1, 10):
        checkpoints.save(Progress(step=step), *make())
    (tmp_path / "step_10" / "state.json").write_text(content)
    assert checkpoints.latest() == tmp_path / "step_1"
    assert "step_10: state.json cannot be read (its content has changed" in caplog.text


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY)
    path = checkpoints.save(Progress(step=1), *make())

    def broken(file):
        raise OSError("input/output error")

    monkeypatch.setattr("vipolyqwen_core.training.checkpoints.checksum", broken)
    assert "unknown (input/output error)" in checkpoints.damage(path)


def save_flip_and_look(folder: Path) -> list[str | None]:
    rank = dist.get_rank()
    model, optimizer = make()
    sharded = DistributedDataParallel(model)
    checkpoints = Checkpoints(folder, keep=3, trajectory=TRAJECTORY)
    for step in (1, 2):
        checkpoints.save(Progress(step=step), sharded, optimizer)
    found = [checkpoints.latest().name]
    files = json.loads((folder / "step_2" / "state.json").read_text())["checksums"]
    assert {".metadata", "__0_0.distcp", "__1_0.distcp"} <= set(files)
    dist.barrier()
    if rank == 0:
        flip(folder / "step_2" / "__1_0.distcp", 700)
    dist.barrier()
    return [*found, checkpoints.damage(folder / "step_2"), checkpoints.latest().name]


def test_each_rank_looks_at_its_shards_and_all_agree(tmp_path):
    first, second = run_on_ranks(save_flip_and_look, 2, tmp_path)
    assert first == second
    assert (first[0], first[2]) == ("step_2", "step_1")
    assert first[1].startswith("__1_0.distcp has checksum")


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
    for more, words in (({"hard_negatives": "m1"}, "None there, 'm1' now"), ({}, "0.1 there, None now")):
        other = Checkpoints(tmp_path, keep=3, trajectory={"data": "d1", **more})
        with pytest.raises(ValueError, match=words):
            other.load(path, *make())


FULL_DISK = """
import resource, shutil, sys
from pathlib import Path
from types import SimpleNamespace
from torch import nn
import torch
from vipolyqwen_core.training.checkpoints import CheckpointError, Checkpoints, Progress
model = nn.Linear(300, 300)
optimizer = torch.optim.AdamW(model.parameters())
checkpoints = Checkpoints(Path(sys.argv[1]), keep=3, trajectory={})
checkpoints.save(Progress(step=1), model, optimizer)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # a file that cannot grow, as on a full disk
shutil.disk_usage = lambda folder: SimpleNamespace(free=0 if any(folder.glob(".*.partial")) else 1e10)
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
    assert "(0.0 GB were free there)" in done.stdout
    assert "saved before: step_1" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert Checkpoints(tmp_path, keep=3, trajectory=TRAJECTORY).latest() == tmp_path / "step_1"


@contextmanager
def failing(name: str, rank: int) -> Iterator[None]:
    """What `checkpoints` calls by this name fails on one rank alone, as its disk would."""
    place = f"vipolyqwen_core.training.checkpoints.{name}"
    working = resolve_name(place.replace("checkpoints.", "checkpoints:"))

    def broken(*arguments: Any, **named: Any) -> Any:
        if dist.get_rank() == rank:
            raise OSError("input/output error")
        return working(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, broken)
        yield


FAILURES = [
    ("Path.mkdir", 0, "could not be written"),
    ("get_state_dict", 1, "could not be written"),
    ("checksum", 1, "could not be written"),
    ("os.replace", 0, "could not be written"),
    ("shutil.rmtree", 0, "is written, but older ones could not be removed"),
]
"""What fails while a checkpoint is saved, on which rank, and what all say."""


def save_where_a_rank_fails(folder: Path) -> list[str]:
    """What a rank says of each of these saves; one that succeeds follows each."""
    model, optimizer = make()
    sharded = DistributedDataParallel(model)
    checkpoints = Checkpoints(folder, keep=1, trajectory=TRAJECTORY)
    checkpoints.save(Progress(step=1), sharded, optimizer)
    said = []
    for step, (name, rank, _) in zip(range(2, 12, 2), FAILURES, strict=True):
        with failing(name, rank), pytest.raises(CheckpointError) as raised:
            checkpoints.save(Progress(step=step), sharded, optimizer)
        said.append(str(raised.value))
        checkpoints.save(Progress(step=step + 1), sharded, optimizer)
    return said


def test_where_saving_fails_on_one_rank_all_raise_the_same_error(tmp_path):
    first, second = run_on_ranks(save_where_a_rank_fails, 2, tmp_path, timeout_seconds=120)
    assert first == second
    for step, (_, rank, words), said in zip(range(2, 12, 2), FAILURES, first, strict=True):
        assert f"step_{step} {words}" in said
        assert f"rank {rank}: input/output error" in said
    assert "saved before: step_1" in first[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step_11"]


def read_where_a_rank_fails(folder: Path) -> list[str | None]:
    """What each rank says of a checkpoint that rank 1 cannot read, and of one that all can."""
    model, optimizer = make()
    sharded = DistributedDataParallel(model)
    checkpoints = Checkpoints(folder, keep=1, trajectory=TRAJECTORY)
    path = checkpoints.save(Progress(step=1), sharded, optimizer)
    said = []
    for name in ("_read_state", "_own_files"):
        with failing(name, 1):
            said.append(checkpoints.damage(path))
    with failing("_read_state", 1), pytest.raises(CheckpointError) as raised:
        checkpoints.load(path, sharded, optimizer)
    return [*said, str(raised.value), checkpoints.damage(path)]


def test_where_reading_fails_on_one_rank_all_know(tmp_path):
    first, second = run_on_ranks(read_where_a_rank_fails, 2, tmp_path, timeout_seconds=120)
    assert first == second
    unread = "rank 1 cannot read it (input/output error)"
    assert first[:2] == [unread, unread]
    assert first[2].endswith("rank 1: input/output error")
    assert first[3] is None


def look_while_rank_0_prunes(folder: Path) -> list[str]:
    """What a rank sees right after saving, where to remove an old checkpoint takes its time."""
    model, optimizer = make()
    sharded = DistributedDataParallel(model)
    checkpoints = Checkpoints(folder, keep=1, trajectory=TRAJECTORY)
    checkpoints.save(Progress(step=1), sharded, optimizer)
    remove = shutil.rmtree

    def slowly(path: Path) -> None:
        time.sleep(1)
        remove(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", slowly)
        checkpoints.save(Progress(step=2), sharded, optimizer)
    return [path.name for path in checkpoints.complete()]


def test_no_rank_sees_a_checkpoint_that_is_being_removed(tmp_path):
    assert run_on_ranks(look_while_rank_0_prunes, 2, tmp_path, timeout_seconds=120) == [["step_2"]] * 2


def test_a_file_that_is_gone_while_it_is_looked_at_is_missing(tmp_path, monkeypatch):
    path = Checkpoints(tmp_path, keep=1, trajectory=TRAJECTORY).save(Progress(step=1), *make())
    (path / ".metadata").unlink()
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert missing_parts(path) == ".metadata is missing"
