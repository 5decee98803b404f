"""Checkpoints: sharded, written aside and renamed, so that a folder `step_N` is whole or not there at all.

Each rank writes its shard (torch.distributed.checkpoint) and takes its CRC-32; `state.json` comes last and
lists every file with size and checksum, and its own, so that a copy that was cut short or changed on the disk
is recognised. They load onto any number of ranks.

    checkpoints/step_200/   state.json   .metadata   __0_0.distcp ...
"""

import json
import logging
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from vipolyqwen_core.training.identity import refuse_other_trajectory
from vipolyqwen_core.training.ranks import is_first, of_all, of_first, rank, together

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
PARTIAL = ".partial"
BLOCK_BYTES = 1 << 24


class CheckpointError(OSError):
    """A checkpoint could not be written or read. What had been saved before is untouched."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: all that a resumed run needs besides model and optimizer."""

    step: int = 0
    """Steps that are done, which is the number of the next one."""
    refused_steps: int = 0
    """Steps whose gradient was not finite and that changed nothing."""
    refused_in_a_row: int = 0
    """Such steps since the last good one."""
    pairs: int = 0
    """Pairs seen."""
    seconds: float = 0.0
    """Time spent in steps, over all resumed parts of the run."""
    running_losses: Mapping[str, float] = field(default_factory=dict)
    """State of the dynamic task weights."""
    best_loss: float | None = None
    """Lowest loss of the quick evaluations so far."""
    best_step: int | None = None
    """Step of the checkpoint that had it."""


class Checkpoints:
    """The checkpoints of one run. All ranks call `save`, `latest`, `has`, `damage` and `load` together."""

    def __init__(self, folder: Path, keep: int, trajectory: Mapping[str, Any]) -> None:
        self.folder = folder
        self.keep = keep
        self.trajectory = dict(trajectory)
        """What decides the weights: only a run with the same may resume."""

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after so many steps."""
        return self.folder / f"step_{step}"

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Write a checkpoint aside, rename it, and remove the ones beyond the newest `keep` and the best.

        Raises:
            CheckpointError: it cannot be written, for example because the disk of one rank is full; on all
                ranks, in the same words
        """
        path = self.path(progress.step)
        aside = path.with_name(f".{path.name}{PARTIAL}")
        try:
            with together(CheckpointError):
                if is_first():
                    for left_over in self.folder.glob(f".*{PARTIAL}"):
                        shutil.rmtree(left_over)
                    aside.mkdir(parents=True)
            with together(CheckpointError):
                state = _state(model, optimizer)  # apart: whoever fails here does not come to save
            with together(CheckpointError):
                with _in_our_words():
                    save(state, checkpoint_id=aside, no_dist=not dist.is_initialized())
                own = {file.name: checksum(file) for file in _own_files(aside)}
            checksums = {name: value for each in of_all(own) for name, value in each.items()}
            with together(CheckpointError):
                if is_first():
                    _write_state(aside, progress, self.trajectory, checksums)
                    if path.exists():  # left by a run that was resumed from an earlier step
                        shutil.rmtree(path)
                    os.replace(aside, path)
        except CheckpointError as error:
            raise CheckpointError(of_first(self._failure(path, aside, error))) from error
        try:
            with together(CheckpointError):
                if is_first():
                    self._prune(progress)
        except CheckpointError as error:
            raise CheckpointError(
                f"checkpoint {path} is written, but older ones could not be removed: {error}"
            ) from error
        return path

    def _failure(self, path: Path, aside: Path, error: CheckpointError) -> str:
        """Why a checkpoint is not there, in the words of rank 0, which clears away what there is of it."""
        if not is_first():
            return ""
        space = _space(self.folder)  # before what there is of it gives room again
        shutil.rmtree(aside, ignore_errors=True)
        kept = ", ".join(whole.name for whole in self.complete()) or "none"
        return f"checkpoint {path} could not be written ({space}): {error}; saved before: {kept}"

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None where the run has none yet.

        A damaged one is passed over with a warning. Each rank reads its part of the files.

        Raises:
            CheckpointError: there are checkpoints, and each is damaged
        """
        found = of_first(self._all() if is_first() else [])
        for path in found:
            damage = self.damage(path)
            if damage is None:
                return path
            if is_first():
                logger.warning("passed over checkpoint %s: %s", path, damage)
        if found:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged ({names}): remove the folder to begin anew"
            )
        return None

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of this step, whole or not; all ranks call it together."""
        return of_first(self.path(step).is_dir() if is_first() else False)

    def complete(self) -> list[Path]:
        """Checkpoints that lack no file and no byte, the newest first; their content is not looked at."""
        return [path for path in self._all() if missing_parts(path) is None]

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, in words, looking at every byte; all ranks call it together."""
        missing = of_first(missing_parts(path) if is_first() else None)
        if missing is not None:
            return missing
        try:
            known = _read_state(path)["checksums"]
            found = {file.name: _checksum_or_error(file) for file in _own_files(path) if file.name in known}
        except (OSError, ValueError) as error:  # of this rank alone
            changed = [f"rank {rank()} cannot read it ({error})"]
        else:
            changed = [
                f"{name} has checksum {value}, not {known[name]}"
                for name, value in found.items()
                if value != known[name]
            ]
        return "; ".join(words for each in of_all(changed) for words in each) or None

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Progress:
        """Fill model and optimizer from a checkpoint, whatever number of ranks wrote it.

        Raises:
            CheckpointError: a file cannot be read
            ValueError: it belongs to a run with other data or settings
        """
        with together(CheckpointError):
            told = _read_state(path)
        refuse_other_trajectory(path, told["trajectory"], self.trajectory)
        state = _state(model, optimizer)
        with _in_our_words():
            load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
        set_state_dict(
            model,
            [] if optimizer is None else optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state.get("optimizer", {}),
        )
        return Progress(**told["progress"])

    def _all(self) -> list[Path]:
        """Checkpoints, the newest first."""
        found = {path: re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*")}
        numbers = {path: int(match[1]) for path, match in found.items() if match}
        return sorted(numbers, key=numbers.__getitem__, reverse=True)

    def _prune(self, progress: Progress) -> None:
        spared = {self.path(step) for step in (progress.step, progress.best_step) if step is not None}
        for number, path in enumerate(self._all()):
            newer = int(path.name.removeprefix("step_")) > progress.step
            if path not in spared and (number >= self.keep or newer):
                shutil.rmtree(path)


def missing_parts(path: Path) -> str | None:
    """What a checkpoint lacks by names and sizes of its files, in words; None: no file and no byte."""
    try:
        files = _read_state(path)["files"]
    except (OSError, ValueError) as error:
        return f"{STATE_FILE} cannot be read ({error})"
    for name, size in files.items():
        try:
            found = (path / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != size:
            return f"{name} has {found} of {size} bytes"
    return None


def initialise_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter its AdamW state now.

    torch makes it at a parameter's first gradient. A checkpoint before that would lack it, and the memory of
    a run would grow with the first picture.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            assert not state, "the optimizer has made steps already"
            device = parameter.device if group.get("fused") else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """What is saved; names do not depend on how the model is wrapped."""
    of_model, of_optimizer = get_state_dict(model, [] if optimizer is None else optimizer)
    return {"model": of_model} if optimizer is None else {"model": of_model, "optimizer": of_optimizer}


def checksum(file: Path) -> str:
    """CRC-32 of a file, 8 hex digits: it tells damage, not malice, at some 2.5 GB/s a core."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _checksum_or_error(file: Path) -> str:
    """A file that cannot be read is damage, and no rank may leave the others waiting."""
    try:
        return checksum(file)
    except OSError as error:
        return f"unknown ({error})"


def _own_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that this rank looks after: the shards that it wrote, and rank 0 the rest."""
    own, ranks = rank(), dist.get_world_size() if dist.is_initialized() else 1
    numbers = ((path, re.match(r"__(\d+)_", path.name)) for path in sorted(folder.iterdir()))
    return [
        path
        for path, number in numbers
        if path.name != STATE_FILE and (int(number[1]) % ranks if number else 0) == own
    ]


def _write_state(
    folder: Path, progress: Progress, trajectory: Mapping[str, Any], checksums: Mapping[str, str]
) -> None:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    state = {
        "progress": asdict(progress),
        "files": files,
        "checksums": dict(sorted(checksums.items())),
        "trajectory": trajectory,
    }
    with (folder / STATE_FILE).open("w", encoding="utf-8") as file:
        json.dump({**state, "checksum": _checksum_of_state(state)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _checksum_of_state(state: Mapping[str, Any]) -> str:
    spelled = json.dumps({name: value for name, value in state.items() if name != "checksum"}, sort_keys=True)
    return f"{zlib.crc32(spelled.encode()):08x}"


@contextmanager
def _in_our_words() -> Iterator[None]:
    """torch raises a BaseException of its own where a shard fails; and it warns of a single process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        causes = [f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items()]
        raise CheckpointError("; ".join(causes)) from error


def _read_state(path: Path) -> dict[str, Any]:
    state: Any = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("checksum") != _checksum_of_state(state):
        raise ValueError("its content has changed since it was written")
    return dict(state)


def _space(folder: Path) -> str:
    """How full the disk of a folder is, which may lack."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB were free there"
    except OSError as error:
        return f"the disk does not answer: {error}"
