"""The two user interfaces, as child processes that end with this one: Dagster's and MLflow's.

Where MLFLOW_TRACKING_URI names a server, that one serves MLflow, and Dagster's alone is started.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from assets.resources import MlflowResource
from orchestration.instance import lacking, open_instance
from orchestration.run_process import close_interrupted_runs
from orchestration.undisturbed import begin_anew
from vipolyqwen_core.process_ties import guarded
from vipolyqwen_core.workspace import Workspace, is_served, serving_environment, without_login

STOP_SECONDS = 15
OPTIONS = {"Dagster": "--port", "MLflow": "--mlflow-port"}


def serve(workspace: Workspace, port: int, mlflow_port: int, console: Console) -> None:
    """Serve until Ctrl-C, SIGTERM, or until one of them ends by itself; all end with this process.

    A link is printed once its server answers, which takes seconds, on a busy machine a minute.

    Raises:
        ValueError: a port is taken, or one of them ended by itself; names which
    """
    ports = {"Dagster": port}
    if own := not is_served(workspace.mlflow_uri):
        ports["MLflow"] = mlflow_port
    refuse_taken_ports(**{OPTIONS[name]: number for name, number in ports.items()})
    with open_instance(workspace) as instance:  # before Dagster starts: its automations would wait for them
        for run_id in close_interrupted_runs(instance):
            console.print(f"Run {run_id[:8]} of a process that is gone was marked as failed.")
        if missing := lacking(instance):
            console.print(
                f"{workspace.dagster_home / 'dagster.yaml'} lacks {', '.join(missing)}: delete it, "
                "and the next command writes it anew",
                soft_wrap=True,
                markup=False,
            )
    if own:
        workspace.remember_mlflow_port(mlflow_port)
        MlflowResource(home=str(workspace.home)).prepare_own()
    # a shell's background job ignores SIGINT, its children inherit that, and Dagster takes SIGTERM for it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin_anew(workspace.home / "ui.log")
    environment = serving_environment(workspace)
    with (workspace.home / "ui.log").open("ab") as log:
        servers = {
            name: subprocess.Popen(
                guarded(sys.executable, "-m", *command),
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            for name, command in commands(workspace, port, mlflow_port).items()
        }
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if own:
            console.print("Dagster and MLflow are starting. Ctrl-C stops both.")
        else:
            console.print("Dagster is starting. Ctrl-C stops it.")
            served = without_login(workspace.mlflow_uri)
            console.print(f"MLflow, by its own server: {served}", soft_wrap=True, markup=False)
        silent = dict(ports)
        try:
            while all(server.poll() is None for server in servers.values()):
                for name in [name for name, number in silent.items() if listens(number)]:
                    console.print(f"{name}: http://127.0.0.1:{silent.pop(name)}")
                time.sleep(0.5)
        except KeyboardInterrupt:
            console.print("stopping")
            return
        finally:
            ended = [name for name, server in servers.items() if server.poll() is not None]
            stop(list(servers.values()))
        raise ValueError(f"{' and '.join(ended)} ended by itself: see {workspace.home / 'ui.log'}")


def refuse_taken_ports(**ports: int) -> None:
    """Dagster would quietly take another port than the one that is printed, and MLflow end.

    Raises:
        ValueError: something listens there; names the option
    """
    for option, port in ports.items():
        if listens(port):
            raise ValueError(f"port {port} is taken: give another one with {option}")
    if len(set(ports.values())) < len(ports):
        raise ValueError(f"{' and '.join(ports)} are the same port")


def listens(port: int) -> bool:
    """Whether a program of this machine takes connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def commands(workspace: Workspace, port: int, mlflow_port: int) -> dict[str, list[str]]:
    """Arguments behind `python -m`; of MLflow none where a server stands before its store.

    `serving_environment` tells it its store.
    """
    dagster = ["dagster", "dev", "-m", "orchestration.definitions", "-p", str(port)]
    # else Dagster imports from the current folder first, which may have packages of the same names
    dagster += ["-d", str(Path(__file__).parents[1])]
    started = {"Dagster": dagster}
    if not is_served(workspace.mlflow_uri):  # `mlflow ui` takes no server for a store
        started["MLflow"] = [
            *("mlflow", "ui", "--default-artifact-root", workspace.mlflow_artifacts.as_uri()),
            *("--port", str(mlflow_port), "--workers", "1"),
        ]
    return started


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    """Ask each to end as Ctrl-C would, which Dagster hands on to its own children; then end what is left.

    Each leads a process group of its own, so nothing outlives it.
    """
    for server in servers:
        _signal(server, signal.SIGINT)
    for server in servers:
        try:
            server.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(server, signal.SIGKILL)
            server.wait()
        _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a server and its children, as far as they are there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
