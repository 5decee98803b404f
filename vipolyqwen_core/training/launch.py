"""Launching: one line starts all ranks of a node, for a person and for the asset alike.

    accelerate launch --num_processes 4 --multi_gpu ... -m vipolyqwen_core.training --config run.json

One process needs no launcher, and accelerate's would not pass on to it a signal to stop. Before either line
stands `vipolyqwen_core.guarded`, so that it ends with whoever started it. torch's launcher is told
to give its ranks the time to save: it leaves them 30 seconds otherwise.

How ranks share the model (data parallel, FSDP2) stands in run.json, not on this line, so the two cannot
disagree unnoticed: the training process refuses to start where they do.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE, guarded
from vipolyqwen_core.training.identity import refuse_other_trajectory, trajectory
from vipolyqwen_core.training.result import read_result
from vipolyqwen_core.training.run_file import ERRORS_FOLDER, write_run
from vipolyqwen_core.usable_cores import usable_cores

SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Variable of torch's launcher: seconds between the signal that it passes on to its ranks and SIGKILL."""

NEEDED: Final = ("accelerate", "dagster_pipes", "mlflow", "psutil", "scipy")
"""What each rank imports of the extra `train`."""
TRACEBACK_BYTES = 65_536
"""A long traceback."""


class TrainingFailed(RuntimeError):
    """A training process failed; the message says which rank, and how."""


def launch_command(run: TrainingRun) -> list[str]:
    """The line that starts the ranks on this machine, for this process to run by itself or by Dagster Pipes.

    Writes the `run.json` that it names into the folder of the run, and clears away the tracebacks that an
    earlier attempt left there.
    """
    config = write_run(run)
    errors = run.output / ERRORS_FOLDER
    if errors.is_dir():
        shutil.rmtree(errors)
    processes = run.recipe.training.processes
    module = ["-m", "vipolyqwen_core.training", "--config", str(config)]
    if processes == 1:
        return guarded(sys.executable, *module)
    threads = max(usable_cores() // processes, 1)
    patience = f"{SHUTDOWN_TIMEOUT}={SECONDS_TO_SAVE:.0f}"
    line = guarded("env", patience, sys.executable, "-m", "accelerate.commands.launch")
    line += ["--num_processes", str(processes), "--num_machines", "1"]
    line += ["--num_cpu_threads_per_process", str(threads)]
    line += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the settings decide, in the process
    line += ["--multi_gpu"]  # names the launcher, which starts ranks without GPUs too
    line += ["--main_process_port", "0"]  # any free one: two runs may share a machine
    return [*line, *module]


def launch(run: TrainingRun) -> None:
    """Train in processes of their own and wait for them; at Ctrl-C and SIGTERM too, until they have saved.

    A container that is stopped sends SIGTERM to this process alone: as the first of the container it would
    not notice, and below an init it would end, and the container with it, before anything is saved.

    A run that is finished is left alone: its `run.json` says what trained it.

    Raises:
        KeyboardInterrupt: it was told to stop
        TrainingFailed: with the traceback of the rank that failed first
        ValueError: what is finished there is the run of other data or settings
        ModuleNotFoundError: the extra `train` is not installed
    """
    if (finished := read_result(run.output)) is not None:
        refuse_other_trajectory(run.output, finished.trajectory, trajectory(run))
        return
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    with _sigterm_interrupts(), subprocess.Popen(launch_command(run)) as launcher:
        try:
            launcher.wait()
        except KeyboardInterrupt:
            launcher.send_signal(signal.SIGINT)
            launcher.wait()
            raise
    if launcher.returncode:
        explained = explain_errors(run)
        raise TrainingFailed("\n".join(part for part in (explained.sentence, explained.traceback) if part))


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Explanation:
    """Why a training ended before its time."""

    sentence: str
    """For a person: which rank, and what it said last."""
    traceback: str
    """Of the rank that failed first; empty where none left one."""


def explain_errors(run: TrainingRun) -> Explanation:
    """What ended the ranks: the earliest traceback they left, since the others' are often its consequence.

    Ranks that left none died by a signal: SIGKILL, out of memory. Or the folder took none: the disk is full.
    """
    folder = run.output / ERRORS_FOLDER
    left = sorted(folder.glob("rank*.txt"), key=lambda path: path.stat().st_mtime_ns)
    if not left and (refusal := _why_no_file(run.output)):
        return Explanation(f"training ended without a traceback: {run.output} takes no file: {refusal}", "")
    if not left:
        return Explanation(
            "training ended without a traceback: it was told to stop (and has saved a checkpoint) or "
            "was killed, for example out of memory; the same command resumes it",
            "",
        )
    trace = left[0].read_text(encoding="utf-8").strip()
    processes = run.recipe.training.processes
    silent = [f"rank {rank}" for rank in range(processes) if not (folder / f"rank{rank}.txt").is_file()]
    died = f" ({', '.join(silent)} died without a traceback)" if silent else ""
    return Explanation(f"training failed on {left[0].stem}{died}: {trace.splitlines()[-1]}", trace)


def _why_no_file(folder: Path) -> str:
    """Why a folder takes no file as long as a traceback; empty where it takes one."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(TRACEBACK_BYTES))  # a file system that compresses has room for zeros
    except OSError as error:
        return error.strerror or str(error)
    return ""
