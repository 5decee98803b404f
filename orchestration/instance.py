"""Dagster's instance: its settings, and order after a run that was killed."""

import socket
from pathlib import Path

import dagster as dg
import psutil
import yaml

from vipolyqwen_core.workspace import Workspace

SETTINGS = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},  # no invitation to a newsletter on the first page
    # a GPU, or the only machine, is used by one training at a time, in whatever run it stands
    "concurrency": {"runs": {"max_concurrent_runs": 4}, "pools": {"granularity": "op", "default_limit": 1}},
    "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 60},
    # what the stages log is read in the run's page
    "python_logs": {
        "managed_python_loggers": ["quality", "vipolyqwen_core"],
        "python_log_level": "INFO",
    },
}

PID_TAG = "vipolyqwen/pid"
HOST_TAG = "vipolyqwen/host"


def open_instance(workspace: Workspace) -> dg.DagsterInstance:
    """The instance of the workspace; its `dagster.yaml` is written where there is none.

    A file that is there is somebody's own and stays as it is.
    """
    write_settings(workspace.dagster_home)
    return dg.DagsterInstance.from_config(str(workspace.dagster_home))


def write_settings(home: Path) -> Path:
    """`dagster.yaml` in Dagster's home."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    if not path.is_file():
        path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return path


def process_tags(pid: int) -> dict[str, str]:
    """Tags by which a later process can tell that a run's own is gone."""
    return {HOST_TAG: socket.gethostname(), PID_TAG: f"{pid}:{psutil.Process(pid).create_time():.0f}"}


def close_interrupted_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process on this machine is gone; free the pools they held. Returns their ids.

    A killed process cannot say so itself, and its slot in a pool would keep every later run waiting.
    """
    closed = []
    running = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED],
        tags={HOST_TAG: socket.gethostname()},
    )
    for run in instance.get_runs(filters=running):
        if not _alive(run.tags.get(PID_TAG, "")):
            instance.report_run_failed(run, message="The process of this run ended without a word.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            closed.append(run.run_id)
    return closed


def _alive(tag: str) -> bool:
    """Whether the process is the one that wrote the tag, not a later one with its number."""
    pid, _, created = tag.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == created
    except psutil.NoSuchProcess:
        return False
