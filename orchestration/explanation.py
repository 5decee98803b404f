"""Why a run failed, in one sentence for a person."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from vipolyqwen_core.full_disk import SIGNS
from vipolyqwen_core.workspace import current_workspace, without_login

if TYPE_CHECKING:  # dagster exports it nowhere
    from dagster_shared.error import SerializableErrorInfo

DATABASE_SAID = re.compile(r"\(\w[\w.]*\.OperationalError\) (.+?)(?: \[SQL: | \(Background on this error|$)")
"""In an error of MLflow or Dagster: the words of its database, to which SQLAlchemy adds the statement."""


def explain_failure(events: Sequence[dg.DagsterEvent], source: str | None) -> str:
    """One sentence: which stage failed and why; for blocking checks, what they found."""
    if blocked := failed_checks(events, source, dg.AssetCheckSeverity.ERROR):
        return "; ".join(blocked)
    for event in events:
        if event.is_step_failure:
            place = f"{event.step_key} of source {source}" if source else event.step_key
            return f"{place}: {_root_cause(event)}"
    return "; ".join(_root_cause(event) for event in events if event.is_run_failure) or "the run failed"


def _root_cause(event: dg.DagsterEvent) -> str:
    """What the stage itself said at the end, on one line; not the library's error that it explains.

    Or what ended the run between two stages: Dagster's own error, as where its database has no room.
    """
    if event.is_run_failure:
        error = event.job_failure_data.error
    else:
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return " ".join(data.user_failure_data.description.split())
        error = data.error
    if error is None:
        return event.message or "failed without a message"
    while error.cause is not None and str(error.cls_name).startswith("Dagster"):
        error = error.cause  # Dagster wraps what a step raises
    if error.cls_name == "MlflowException":
        return _told_by_mlflow(error)
    message = " ".join(error.message.split())
    if event.is_run_failure and (said := DATABASE_SAID.search(message)):
        return f"a database of Dagster in {current_workspace().dagster_home} cannot be used ({said[1]})"
    for mistake in ("ValueError", "FileNotFoundError"):
        message = message.removeprefix(f"{mistake}: ")
    return message


def _told_by_mlflow(error: "SerializableErrorInfo") -> str:
    """An error of MLflow, with the store that it is about, and without the statement that failed there.

    Where a file met the full disk first, that is told: the run of MLflow cannot end either, which hides it.
    """
    first: SerializableErrorInfo | None = error
    while first is not None:
        if first.cls_name == "OSError" and any(sign in first.message for sign in SIGNS):
            error = first
        first = first.cause or first.context
    message = " ".join(error.message.split())
    said = DATABASE_SAID.search(message)
    if said is None:
        return message
    return f"MLflow's store {without_login(current_workspace().mlflow_uri)} cannot be used ({said[1]})"


def failed_checks(
    events: Sequence[dg.DagsterEvent], source: str | None, severity: dg.AssetCheckSeverity
) -> list[str]:
    """A sentence for each asset check that failed with that severity."""
    sentences = []
    for event in events:
        if event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            continue
        check = event.asset_check_evaluation_data
        if not check.passed and check.severity == severity:
            asset = check.asset_key.to_user_string()
            place = f"{asset} of source {source}" if source else asset
            sentences.append(f"{place}: check {check.check_name}: {check.description or 'failed'}")
    return sentences
