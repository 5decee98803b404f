"""The line that launches names what the settings ask for, and nothing that it starts is left behind."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from torch.distributed.launcher.api import LaunchConfig
from typer.testing import CliRunner

from tests.hung_up import run_hung_up
from vipolyqwen_core.__main__ import app
from vipolyqwen_core.config import TrainingRun, from_json, to_json
from vipolyqwen_core.first_process import EXIT_CODE
from vipolyqwen_core.model import backbone
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE, guarded
from vipolyqwen_core.training import identity
from vipolyqwen_core.training import launch as launch_module
from vipolyqwen_core.training.__main__ import recorded_failure
from vipolyqwen_core.training.launch import (
    SHUTDOWN_TIMEOUT,
    TrainingFailed,
    explain_errors,
    launch,
    launch_command,
)
from vipolyqwen_core.training.run_file import RUN_FILE, write_run
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import train


def test_the_line_launches_as_many_processes_as_the_settings_ask_for(make_run):
    run = make_run(training={"distribution": "fsdp2", "processes": 4})
    line = launch_command(run)
    patience = f"{SHUTDOWN_TIMEOUT}={SECONDS_TO_SAVE:.0f}"
    assert line[:9] == guarded("env", patience, sys.executable, "-m", "accelerate.commands.launch")
    assert line[line.index("--num_processes") + 1] == "4"
    assert "--multi_gpu" in line
    assert line[-4:] == ["-m", "vipolyqwen_core.training", "--config", str(run.output / "run.json")]
    assert from_json(TrainingRun, (run.output / "run.json").read_bytes()) == run


def test_one_process_needs_no_launcher(make_run):
    run = make_run()
    module = ("-m", "vipolyqwen_core.training", "--config", str(run.output / "run.json"))
    assert launch_command(run) == guarded(sys.executable, *module)


def test_torchs_launcher_takes_the_time_to_save(monkeypatch):
    monkeypatch.setenv(SHUTDOWN_TIMEOUT, f"{SECONDS_TO_SAVE:.0f}")
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2)
    assert config.shutdown_timeout == SECONDS_TO_SAVE


INTERRUPTED = """
import signal, sys
from types import SimpleNamespace
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
from vipolyqwen_core.training import launch
from vipolyqwen_core.process_ties import guarded
launch.launch_command = lambda run: guarded(sys.executable, "-c", *sys.argv[1:])
launch.read_result = lambda output: None
launch.launch(SimpleNamespace(output=None))
"""
SAVER = """
import signal, sys, time
from pathlib import Path
told = []
signal.signal(signal.SIGINT, lambda *_: told.append("told"))
place = Path(sys.argv[1])
place.write_text("up")
while not told:
    time.sleep(0.05)
time.sleep(1)
place.write_text(f"saved, {len(told)} signal")
sys.exit(1)
"""


def test_ctrl_c_comes_to_the_launched_process_once_and_the_command_waits_until_it_has_saved(tmp_path):
    place = tmp_path / "place"
    command = [sys.executable, "-c", INTERRUPTED, SAVER, str(place)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (place.exists() and place.read_text()):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        try:
            assert process.wait(timeout=60) == -signal.SIGINT
        finally:
            process.kill()
    assert place.read_text() == "saved, 1 signal"


def test_a_container_that_is_stopped_waits_until_the_launched_process_has_saved(tmp_path):
    place = tmp_path / "place"
    command = [sys.executable, "-c", INTERRUPTED, SAVER, str(place)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (place.exists() and place.read_text()):
            time.sleep(0.02)
        process.terminate()  # this one alone: the container ends with it
        try:
            assert process.wait(timeout=60) == -signal.SIGINT  # as Python leaves at KeyboardInterrupt
        finally:
            process.kill()
    assert place.read_text() == "saved, 1 signal"


def test_training_whose_terminal_is_gone_goes_on(make_run):
    run = make_run()
    command = ("-m", "vipolyqwen_core.training", "--config", str(write_run(run)))
    assert run_hung_up(*command, after=b"training") == 0
    assert (run.output / "result.json").is_file()


def test_the_first_traceback_explains_and_silent_ranks_are_named(make_run):
    run = make_run(training={"distribution": "data_parallel", "processes": 3})
    assert "without a traceback" in explain_errors(run).sentence
    errors = run.output / "errors"
    errors.mkdir(parents=True)
    for number, (rank, text) in enumerate(
        [(2, "Trace\nValueError: no picture 7"), (0, "Trace\nRuntimeError: gloo")]
    ):
        path = errors / f"rank{rank}.txt"
        path.write_text(text, encoding="utf-8")
        os.utime(path, (1000 + number, 1000 + number))
    explained = explain_errors(run)
    assert explained.sentence == (
        "training failed on rank2 (rank 1 died without a traceback): ValueError: no picture 7"
    )
    assert explained.traceback == "Trace\nValueError: no picture 7"


def test_a_traceback_of_an_earlier_attempt_does_not_explain_the_next_one(make_run):
    run = make_run(training={"distribution": "data_parallel", "processes": 2})
    errors = run.output / "errors"
    errors.mkdir(parents=True)
    (errors / "rank3.txt").write_text("ValueError: no picture 7", encoding="utf-8")  # of four processes
    assert "no picture 7" in explain_errors(run).sentence
    launch_command(run)
    assert "without a traceback" in explain_errors(run).sentence


def test_a_disk_that_takes_no_traceback_is_named_in_its_place(make_run):
    run = make_run()
    write_run(run)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # a file that cannot grow, as on a full disk
    try:
        with pytest.raises(LookupError), recorded_failure(run.output, 0):
            raise LookupError("a sentence of its own")
        explained = explain_errors(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert explained.sentence == (
        f"training ended without a traceback: {run.output} takes no file: File too large"
    )
    assert not list((run.output / "errors").iterdir())  # nor the beginning of one, whose last line explains


def test_a_failed_launch_gives_the_reason_of_the_rank(make_run, tmp_path):
    run = make_run()
    lost = TrainingRun(
        recipe=run.recipe, backbone=run.backbone, training_set=tmp_path / "nowhere", output=run.output
    )
    with pytest.raises(TrainingFailed, match="failed on rank0: ValueError: no plan index"):
        launch(lost)


def test_a_launcher_that_was_killed_is_no_finished_training(make_run, monkeypatch):
    """As by the system, where memory is short."""
    monkeypatch.setattr(launch_module, "launch_command", lambda _: ["sh", "-c", "kill -9 $$"])
    with pytest.raises(TrainingFailed, match="ended without a traceback"):
        launch(make_run())


def test_the_settings_that_a_finished_run_was_told_stay(make_run, monkeypatch):
    """Whoever repeats the command, to train or to look, may have other settings of judging or other tags."""
    run = replace(make_run(training={"max_steps": 1}), tags={"git_commit": "of the training"})
    train(run, StopSignal())
    told = (run.output / RUN_FILE).read_text()
    later = replace(make_run(training={"max_steps": 1, "keep_checkpoints": 7}), tags={"git_commit": "later"})
    launch(later)
    monkeypatch.setattr(identity, "identified_run", lambda *_: later)
    monkeypatch.setattr(backbone, "resolve_backbone", lambda *_: run.backbone)
    for option, answer in ((), "This run was finished before."), (("--dry-run",), "The run's settings: "):
        assert answer in CliRunner().invoke(app, ["train", "--recipe", "demo", *option]).output
    assert (run.output / RUN_FILE).read_text() == told
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.001 there, 0.1 now"):
        launch(make_run(training={"max_steps": 1}, optimizer={"learning_rate": 0.1}))


FAULT = """
import os, sys
if os.environ.get("RANK") == "1":
    from vipolyqwen_core.training.engine import Engine
    def step(*_):
        raise RuntimeError("out of luck")
    Engine.step = step
"""
"""`sitecustomize.py`, which Python runs first: rank 1 fails while rank 0 waits for it in a collective."""


@pytest.mark.slow
def test_a_crash_of_one_rank_ends_the_others_and_is_the_reason_given(make_run, tmp_path, monkeypatch):
    run = make_run(training={"distribution": "data_parallel", "processes": 2})
    (tmp_path / "sitecustomize.py").write_text(FAULT, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    with pytest.raises(TrainingFailed, match=r"^training failed on rank1.*: RuntimeError: out of luck\n"):
        launch(run)
    assert not processes_of(run)


CANCELLED = """
import sys
from pathlib import Path
import dagster as dg
from vipolyqwen_core.config import TrainingRun, from_json
from vipolyqwen_core.training.launch import launch_command

run = from_json(TrainingRun, Path(sys.argv[1]).read_bytes())

@dg.asset
def training(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient):
    pipes.run(context=context, command=launch_command(run))

dg.materialize([training], resources={"pipes": dg.PipesSubprocessClient()})
"""


@pytest.mark.slow
def test_a_cancelled_dagster_run_saves_and_leaves_no_process(make_run, tmp_path):
    run = make_run(
        training={"distribution": "data_parallel", "processes": 2, "epochs": 1000, "save_steps": 10**6}
    )
    (tmp_path / "told.json").write_text(to_json(run), encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", CANCELLED, tmp_path / "told.json"]) as worker:
        while not read_metrics(run.output / "metrics.jsonl") and worker.poll() is None:
            time.sleep(0.1)
        assert len(processes_of(run)) >= 3  # the launcher and its ranks
        worker.send_signal(signal.SIGINT)  # what a run's worker is sent when somebody cancels it
        worker.wait(timeout=300)
    deadline = time.monotonic() + 120
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(run)
    assert list((run.output / "checkpoints").glob("step_*"))
    assert not (run.output / "errors").exists()


@pytest.mark.slow
def test_a_stop_on_one_of_two_machines_saves_and_the_same_lines_go_on(make_run):
    """By USAGE.md's line for several machines; both are this one."""
    run = make_run(training={"distribution": "data_parallel", "epochs": 20, "save_steps": 10**6})
    config = write_run(run)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start() -> list[subprocess.Popen[bytes]]:
        line = guarded(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu")
        line += ["--num_machines", "2", "--num_processes", "2"]
        line += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        line += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        module = ["-m", "vipolyqwen_core.training", "--config", str(config)]
        return [subprocess.Popen([*line, "--machine_rank", str(number), *module]) for number in range(2)]

    first, second = start()
    while not read_metrics(run.output / "metrics.jsonl") and first.poll() is None:
        time.sleep(0.1)
    second.terminate()
    assert 0 not in [machine.wait(timeout=300) for machine in (first, second)]
    (saved,) = (run.output / "checkpoints").glob("step_*")
    assert not (run.output / "errors").exists()
    assert [machine.wait(timeout=300) for machine in start()] == [0, 0]
    steps = [line["step"] for line in read_metrics(run.output / "metrics.jsonl")]
    assert steps == list(range(1, 61))
    assert 0 < int(saved.name.removeprefix("step_")) < 60
    assert (run.output / "model" / "config.json").is_file()


def processes_of(run: TrainingRun) -> list[int]:
    """Processes whose command line names the run."""
    named = str(run.output / "run.json")
    found = psutil.process_iter(["cmdline"])
    return [process.pid for process in found if named in " ".join(process.info["cmdline"] or ())]


STARTER = """
import signal, subprocess, sys, time
from vipolyqwen_core.process_ties import guarded
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as who starts it may have it
sleeper = "import time; print('up', flush=True); time.sleep(600)"
line = guarded(sys.executable, "-c", sleeper)
as_elsewhere = "import runpy, sys; sys.platform = {platform!r}; sys.argv[0] = '-'; "
as_elsewhere += "runpy.run_module('vipolyqwen_core.guarded', run_name='__main__')"
child = subprocess.Popen([line[0], "-c", as_elsewhere, *line[line.index("vipolyqwen_core.guarded") + 1:]])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_guarded_command_ends_with_a_starter_that_is_killed(platform):
    line = [sys.executable, "-c", STARTER.format(platform=platform)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        lines = {starter.stdout.readline().strip(), starter.stdout.readline().strip()}
        pid = int((lines - {"up"}).pop())
        assert alive(pid)
        watchers = psutil.Process(pid).children()
        assert len(watchers) == (platform == "darwin")
        for watcher in watchers:  # a terminal's Ctrl-C would end it before what it watches
            while os.getpgid(watcher.pid) != watcher.pid:
                time.sleep(0.05)
        starter.kill()
        starter.wait()
        assert starter.stdout.read() == ""  # nobody holds it any longer
    assert ends(pid)
    assert all(ends(watcher.pid) for watcher in watchers)


def test_a_package_that_ranks_need_is_missed_before_they_start(make_run, monkeypatch):
    find = launch_module.find_spec
    monkeypatch.setattr(launch_module, "find_spec", lambda name: None if name == "psutil" else find(name))
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ModuleNotFoundError) as missed:  # the command says which extra brings it
        launch(make_run())
    assert missed.value.name == "psutil"


def test_a_guarded_command_whose_starter_is_gone_already_is_not_run():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    line = [str(gone.pid) if part == str(os.getpid()) else part for part in guarded("echo", "it runs")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (EXIT_CODE, "")
    assert "is gone: nothing is run" in done.stderr


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(pid: int) -> bool:
    """Whether a process ends. Looks are counted, not seconds, of which a paused machine has many at once."""
    for _ in range(600):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


WATCHER = """
import os, signal, sys, time
from vipolyqwen_core import process_ties
process_ties.SECONDS_BETWEEN_LOOKS = process_ties.SECONDS_TO_SAVE = 0.05
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as if the main thread hung in a collective
process_ties.leave_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_rank_that_hangs_leaves_when_its_launcher_is_gone():
    launcher = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", launcher, WATCHER], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert alive(pid)
        starter.send_signal(signal.SIGKILL)
    assert ends(pid)
