"""A run that is told to stop saves, leaves, and goes on by the same command."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import mlflow
import pytest

from vipolyqwen_core.config import to_json
from vipolyqwen_core.first_process import EXIT_CODE
from vipolyqwen_core.training.engine import Engine
from vipolyqwen_core.training.result import read_result
from vipolyqwen_core.training.stopping import SIGNALS, StoppedEarly, StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import train


class AskedIn(StopSignal):
    """SIGTERM comes in a step of this part of the run; 0: before the first."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.looks = step

    def asked(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_sigterm_saves_and_the_same_command_resumes(make_run):
    run = make_run()
    with pytest.raises(StoppedEarly, match="after step 1 of 6"):
        train(run, AskedIn(1))
    assert (run.output / "checkpoints" / "step_1").is_dir()
    assert read_result(run.output) is None
    run_id, client = (run.output / "mlflow_run_id").read_text(), mlflow.MlflowClient()
    assert client.get_run(run_id).info.status == "KILLED"
    result = train(run, StopSignal())
    assert [line["step"] for line in read_metrics(run.output / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert result.mlflow_run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"


def test_sigterm_while_a_run_is_set_up_costs_no_step_and_leaves_no_checkpoint(make_run):
    run = make_run()
    with pytest.raises(StoppedEarly, match="before step 1 of 6; nothing had to be saved"):
        train(run, AskedIn(0))
    assert not (run.output / "checkpoints").exists()
    with pytest.raises(StoppedEarly, match="after step 1 of 6"):
        train(run, AskedIn(1))
    with pytest.raises(StoppedEarly, match="before step 2 of 6"):
        train(run, AskedIn(0))
    assert [path.name for path in (run.output / "checkpoints").iterdir()] == ["step_1"]
    assert train(run, StopSignal()).steps == 6


def test_sigterm_to_all_processes_of_a_run_saves_the_step_in_progress(make_run):
    run = make_run(training={"epochs": 200, "save_steps": 10_000, "loader_workers": 2})
    run.output.mkdir()
    config = run.output / "run.json"
    config.write_text(to_json(run), encoding="utf-8")
    command = [sys.executable, "-m", "vipolyqwen_core.training", "--config", str(config)]
    with subprocess.Popen(command, start_new_session=True) as process:
        while not read_metrics(run.output / "metrics.jsonl") and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=120) == EXIT_CODE
    (saved,) = (run.output / "checkpoints").iterdir()
    assert saved.name == f"step_{read_metrics(run.output / 'metrics.jsonl')[-1]['step']}"
    assert not (run.output / "errors").exists()


def test_a_run_that_is_stopped_at_a_refused_step_saves_what_it_has(make_run, monkeypatch):
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda *given: replace(step(*given), refused=True))
    run = make_run(training={"save_steps": 100})
    with pytest.raises(StoppedEarly, match="after step 1 of 6"):
        train(run, AskedIn(1))
    assert (run.output / "checkpoints" / "step_1").is_dir()


def test_a_checkpoint_that_a_refused_step_put_off_comes_with_the_next_good_one(make_run, monkeypatch):
    step = Engine.step
    monkeypatch.setattr(
        Engine, "step", lambda *given: replace(step(*given), refused=given[1].number + 1 in (2, 4, 5))
    )
    run = make_run(training={"save_steps": 2, "keep_checkpoints": 10})
    train(run, StopSignal())
    assert sorted(path.name for path in (run.output / "checkpoints").iterdir()) == ["step_3", "step_6"]


WAITS = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from vipolyqwen_core.training.stopping import StopSignal
stop = StopSignal()
stop.listen()
with stop.obeyed_at_once():
    print("there", flush=True)
    TCPStore("127.0.0.1", int(sys.argv[1]), 2, is_master=False, timeout=timedelta(minutes=5))
"""


def test_a_rank_that_waits_for_another_one_which_is_gone_leaves_at_once():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        command = [sys.executable, "-c", WAITS, str(mute.getsockname()[1])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "there\n"
            mute.accept()  # it waits for the answer
            rank.terminate()
            assert rank.wait(timeout=60) == -signal.SIGTERM


@pytest.fixture
def listening() -> Iterator[StopSignal]:
    """It has the signals of this process."""
    before, stop = {one: signal.getsignal(one) for one in SIGNALS}, StopSignal()
    stop.listen()
    yield stop
    for one, handler in before.items():
        signal.signal(one, handler)


def test_a_signal_that_came_before_the_others_were_there_ends_the_waiting_and_a_later_one_saves(listening):
    with listening.obeyed_at_once():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not listening.asked()
    signal.raise_signal(signal.SIGTERM)
    assert listening.asked()
    with pytest.raises(StoppedEarly, match="before the first step"), listening.obeyed_at_once():
        pytest.fail("it waited")


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_ask_to_stop_however_often_they_come(listening, number):
    assert not listening.asked()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert listening.asked()
