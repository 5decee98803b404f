"""Dagster's instance and its settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster_shared.check import CheckError
from sqlalchemy.exc import DatabaseError, OperationalError

from assets.training_set import TRAINING_SET_TAG
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

PARTITION_TAG = "dagster/partition"
"""Dagster's own tag of a run: the source that it is for."""

SECONDS_TO_CANCEL = int(SECONDS_TO_SAVE) + 60
"""After so long Dagster takes a cancelled run for ended, and hands its pool on: not while it saves."""

SETTINGS = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},  # no invitation to a newsletter on the first page
    "concurrency": {
        "runs": {
            "max_concurrent_runs": 4,
            "tag_concurrency_limits": [
                # the training set is rebuilt in place: who reads it through several steps is alone with it
                {"key": TRAINING_SET_TAG, "limit": 1},
                # and so are the tables of a source, which a sensor and a schedule may ask for at once
                {"key": PARTITION_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
            ],
        },
        # a GPU, or the only machine, is used by one training at a time, in whatever run it stands
        "pools": {"granularity": "op", "default_limit": 1},
    },
    "run_monitoring": {
        "enabled": True,
        "cancel_timeout_seconds": SECONDS_TO_CANCEL,
        "free_slots_after_run_end_seconds": 60,
    },
    # a run whose process was lost is repeated, and goes on where it stood; a step that failed is not
    "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False},
    # what the stages log is read in the run's page
    "python_logs": {
        "managed_python_loggers": ["quality", "vipolyqwen_core"],
        "python_log_level": "INFO",
    },
}


@contextmanager
def open_instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    """The instance of the workspace; its `dagster.yaml` is written where there is none.

    A file that is there is somebody's own and stays as it is.

    Raises:
        ValueError: one of its databases is damaged, as after a power cut, or cannot be used for another
            reason; Dagster opens some of them late, and names none. Or the file holds a mistake
    """
    home = workspace.dagster_home
    settings = write_settings(home)
    try:
        with _opened(settings) as instance:
            yield instance
    except DatabaseError as error:
        reason = f"a database of Dagster in {home} cannot be used ({error.orig})"
        if not isinstance(error, OperationalError):  # as where the disk is full, or another process writes
            reason += (
                ": restore the folder from a backup, or move it away, and the next command makes a new one, "
                "without the history of runs, which no stage needs, and with schedules and sensors off"
            )
        raise ValueError(reason) from error


def _opened(settings: Path) -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.from_config(str(settings.parent))
    except (dg.DagsterInvalidConfigError, CheckError, yaml.YAMLError) as error:
        raise ValueError(
            f"{settings} is wrong: {' '.join(str(error).split())}; mend it, or delete it, and the next "
            "command writes it anew"
        ) from error


def lacking(instance: dg.DagsterInstance) -> list[str]:
    """What a `dagster.yaml` of an older version, or one of somebody's own, does not ask of the UI's runs."""
    queue = instance.get_concurrency_config().run_queue_config
    limited = {limit["key"] for limit in queue.tag_concurrency_limits} if queue else set()
    missing = [f"the limit on {key}" for key in (TRAINING_SET_TAG, PARTITION_TAG) if key not in limited]
    if not instance.run_retries_enabled:
        missing.append("run_retries")
    if instance.run_monitoring_cancel_timeout_seconds < SECONDS_TO_CANCEL:
        missing.append(f"a cancel_timeout_seconds of {SECONDS_TO_CANCEL}")
    return missing


def write_settings(home: Path) -> Path:
    """`dagster.yaml` in Dagster's home."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    if not path.is_file():
        with written_aside(path) as aside:  # a half, or an empty one, would stay for good
            aside.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return path
