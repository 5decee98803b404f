"""Two trainings are never at the folder of one run at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from vipolyqwen_core.training.__main__ import main
from vipolyqwen_core.training.only_training import only_training
from vipolyqwen_core.training.run_file import write_run
from vipolyqwen_core.training.stopping import StoppedEarly, StopSignal

SAVES = """
import sys, time
from pathlib import Path
from vipolyqwen_core.training.only_training import only_training
from vipolyqwen_core.training.stopping import StopSignal
with only_training(Path(sys.argv[1]), StopSignal()):
    print("there", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1], "saved").touch()
"""


class Asked(StopSignal):
    def asked(self) -> bool:
        return True


def saving(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    """A process that is at the folder for so long."""
    started = [sys.executable, "-c", SAVES, str(folder), str(seconds)]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_a_training_waits_until_the_one_before_it_has_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with saving(folder, 1), only_training(folder, StopSignal()):
        assert (folder / "saved").exists()


def test_a_training_beside_another_that_goes_on_is_refused_and_can_be_stopped_before(tmp_path: Path) -> None:
    with saving(tmp_path, 600) as other:
        refused = pytest.raises(ValueError, match=f"process {other.pid} trains in {tmp_path}: wait for it")
        with refused, only_training(tmp_path, StopSignal(), patience_seconds=0):
            pass
        with pytest.raises(StoppedEarly), only_training(tmp_path, Asked()):
            pass
        other.kill()
        other.wait()
        with only_training(tmp_path, StopSignal(), patience_seconds=60):
            pass


def test_the_training_process_holds_its_folder(make_run, monkeypatch):
    """What it is told meanwhile is whether a second one would get in."""
    run = make_run()
    found = []

    def train(told, stop):
        refused = pytest.raises(ValueError, match=r"process \d+ trains in")
        with refused, only_training(told.output, stop, patience_seconds=0):
            pass
        found.append(told.output)

    monkeypatch.setattr(StopSignal, "listen", lambda self: None)
    monkeypatch.setattr("vipolyqwen_core.training.train.train", train)
    assert main(["--config", str(write_run(run))]) == 0
    assert found == [run.output]
