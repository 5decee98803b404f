"""The user interfaces: what is started, and that nothing of it is left."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import dagster as dg
import psutil
import pytest
from rich.console import Console

from orchestration import servers
from orchestration.definitions import build_definitions
from orchestration.instance import open_instance
from orchestration.run_process import PROCESS_TAG, process_tags
from orchestration.servers import commands, refuse_taken_ports, stop
from vipolyqwen_core.workspace import Workspace

DEAF = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
)
STUBBORN = (
    f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); time.sleep(600)"
)


def test_children_that_ignore_ctrl_c_end_too() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"1\n"
    (child,) = psutil.Process(server.pid).children()
    stop([server])
    assert server.poll() is not None
    for _ in range(100):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


SERVES = """
import sys
from pathlib import Path
from rich.console import Console
from orchestration import servers
from vipolyqwen_core.workspace import Workspace
ports = [int(port) for port in sys.argv[2:]]
servers.commands = lambda *_: {str(port): ["http.server", str(port)] for port in ports}
servers.serve(Workspace(Path(sys.argv[1])), *ports, Console())
"""


def test_links_are_told_once_they_answer_and_servers_end_with_a_command_that_was_killed(
    tmp_path: Path,
) -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = [str(place.getsockname()[1]) for place in (one, other)]
    started = [sys.executable, "-c", SERVES, str(tmp_path), *ports]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        told: set[str] = set()
        while len(told) < 2:
            line = command.stdout.readline()
            assert line, "the command has ended"
            if "http://" in line:
                link = line.split()[1]
                told.add(link)
                assert urlopen(link).status == 200
        children = psutil.Process(command.pid).children()
        assert len(children) == 2
        for child in children:  # told where `ps` does not show it
            assert child.environ()["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
            assert not any("sqlite" in argument for argument in child.cmdline())
        command.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_taken_port_is_named_with_its_option() -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        port, other = taken.getsockname()[1], free.getsockname()[1]
        refuse_taken_ports(**{"--port": other})
        with pytest.raises(ValueError, match=f"port {port} is taken: give another one with --mlflow-port"):
            refuse_taken_ports(**{"--port": other, "--mlflow-port": port})
        with pytest.raises(ValueError, match="are the same port"):
            refuse_taken_ports(**{"--port": other, "--mlflow-port": other})


def test_a_store_of_its_own_is_served_with_the_workspace_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    served = commands(Workspace(tmp_path), 3000, 5000)
    root = str(Path(__file__).parents[2])
    assert served["Dagster"] == [
        *("dagster", "dev", "-m", "orchestration.definitions", "-p", "3000"),
        *("-d", root),  # not the current folder, which may have packages of the same names
    ]
    assert f"file://{tmp_path}/mlartifacts" in served["MLflow"]


def test_beside_an_mlflow_server_dagster_alone_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com:5000")
    workspace = Workspace(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(workspace.home / "dagster"))
    assert list(commands(workspace, 3000, 5000)) == ["Dagster"]
    console = Console(record=True, width=100)
    with socket.socket() as of_the_server:
        of_the_server.bind(("127.0.0.1", 0))
        of_the_server.listen()
        serve_and_end(workspace, monkeypatch, console, mlflow_port=of_the_server.getsockname()[1])
    told = console.export_text()
    assert "Dagster is starting. Ctrl-C stops it." in told
    assert "http://mlflow.example.com:5000" in told


def test_links_lead_to_the_port_that_mlflow_is_served_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace = Workspace(tmp_path / "home")

    def link_base() -> str:
        resources = build_definitions(workspace, None, "demo").resources
        assert resources is not None
        return str(resources["mlflow"].place.mlflow_ui)

    assert link_base() == "http://127.0.0.1:5000"
    ports = serve_and_end(workspace, monkeypatch)
    assert link_base() == f"http://127.0.0.1:{ports[1]}"


def test_runs_that_were_killed_with_their_daemon_are_closed_before_dagster_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace, run_id = Workspace(tmp_path / "home"), str(uuid4())

    @dg.job
    def corpus() -> None: ...

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    tags = process_tags(run_id)
    tags[PROCESS_TAG] = f"{ended.pid}:{tags[PROCESS_TAG].partition(':')[2]}"
    with open_instance(workspace) as instance:
        instance.create_run_for_job(corpus, run_id=run_id, tags=tags, status=dg.DagsterRunStatus.STARTED)
        serve_and_end(workspace, monkeypatch)
        assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE


def test_each_start_begins_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace = Workspace(tmp_path / "home")
    workspace.home.mkdir()
    (workspace.home / "ui.log").write_text("of the last start\n")
    serve_and_end(workspace, monkeypatch)
    assert (workspace.home / "ui.log.1").read_text() == "of the last start\n"
    assert "of the last start" not in (workspace.home / "ui.log").read_text()


def serve_and_end(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    console: Console | None = None,
    mlflow_port: int | None = None,
) -> tuple[int, int]:
    """Serve two modules that do nothing and end; the ports that they were given."""
    monkeypatch.setattr(servers, "commands", lambda *arguments: {"MLflow": ["this"], "Dagster": ["this"]})
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], mlflow_port or other.getsockname()[1]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="ended by itself"):
        servers.serve(workspace, *ports, console or Console(quiet=True))
    signal.signal(signal.SIGTERM, handler)
    return ports
