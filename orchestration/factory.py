"""`run_factory`: the job `corpus` for each source and then the job `model`, in this process, with progress.

The runs go to the workspace's own Dagster instance, so that the UI shows them like any others.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from rich.console import Console

from assets.resources import ManifestResource
from orchestration.definitions import build_definitions
from orchestration.instance import close_interrupted_runs, open_instance, process_tags
from orchestration.jobs import ASSET_KEYS
from orchestration.progress import FactoryProgress, progress_logger
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.recipes import load_recipe
from vipolyqwen_core.workspace import Workspace


class FactoryError(RuntimeError):
    """A run failed; the message is one sentence for a person."""


@dataclass(frozen=True)
class StageOutcome:
    """One asset, materialised once."""

    asset: str
    source: str | None
    """The partition; None: the asset has none."""
    seconds: float
    metadata: Mapping[str, Any]
    """Values of the materialisation's metadata."""

    @property
    def name(self) -> str:
        """`curated_corpus receipts`"""
        return f"{self.asset} {self.source}" if self.source else self.asset

    @property
    def reused(self) -> bool:
        """Whether nothing had changed and an earlier result stands."""
        return "true" in str(self.metadata.get("reused", ""))


@dataclass(frozen=True)
class FactoryOutcome:
    """What the runs left behind, in their order."""

    stages: tuple[StageOutcome, ...]
    run_ids: tuple[str, ...]
    """Dagster runs."""
    warnings: tuple[str, ...]
    """Checks that failed without blocking."""

    def stage(self, asset: str) -> StageOutcome:
        """The outcome of an unpartitioned asset."""
        return next(stage for stage in self.stages if stage.asset == asset)


def run_factory(workspace: Workspace, sources: str | None, recipe: str, console: Console) -> FactoryOutcome:
    """Every stage, from the manifest's sources (None: the demo corpus) to the exported table.

    Raises:
        FactoryError: a stage or a blocking check failed; names the stage and why
        KeyboardInterrupt: a person stopped it
        ValueError: the manifest or the recipe is wrong, or a source cannot be read at all
    """
    load_recipe(recipe)
    definitions = build_definitions(workspace, sources, recipe)
    names = check_sources(ManifestResource(path=sources, home=str(workspace.home)).load())
    progress = FactoryProgress(console, num_stages=3 * len(names) + len(ASSET_KEYS) - 3)
    definitions = dg.Definitions.merge(
        definitions, dg.Definitions(loggers={"progress": progress_logger(progress)})
    )
    stages: list[StageOutcome] = []
    run_ids: list[str] = []
    warnings: list[str] = []
    with open_instance(workspace) as instance, progress:
        for run_id in close_interrupted_runs(instance):
            console.print(f"Run {run_id[:8]} of a process that is gone was marked as failed.")
        for job, source in [*(("corpus", name) for name in names), ("model", None)]:
            progress.source = source or ""
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                partition_key=source,
                raise_on_error=False,
                run_config={"loggers": {"progress": {}}},
                tags=process_tags(os.getpid()),
            )
            run_ids.append(result.run_id)
            refuse_failure(result, source)
            stages += _outcomes(result, source)
            warnings += _failed_checks(result.all_events, source, dg.AssetCheckSeverity.WARN)
    return FactoryOutcome(tuple(stages), tuple(run_ids), tuple(warnings))


def run_rollback(workspace: Workspace, sources: str | None, recipe: str, version: int) -> None:
    """Make an earlier version champion again, and export with it.

    Raises:
        FactoryError: there is no such version, or its export failed
        KeyboardInterrupt: a person stopped it
    """
    definitions = build_definitions(workspace, sources, recipe)
    with open_instance(workspace) as instance:
        close_interrupted_runs(instance)
        result = definitions.resolve_job_def("rollback").execute_in_process(
            instance=instance,
            raise_on_error=False,
            run_config={"ops": {"roll_back": {"config": {"version": version}}}},
            tags=process_tags(os.getpid()),
        )
        refuse_failure(result, None)


def refuse_failure(result: dg.ExecuteInProcessResult, source: str | None) -> None:
    """Nothing, where a run went well.

    Raises:
        KeyboardInterrupt: a person stopped it; Dagster reports that as the failure of a step
        FactoryError: it failed; names the stage and why
    """
    if result.success:
        return
    if any(event.is_step_failure and _is_interruption(event) for event in result.all_events):
        raise KeyboardInterrupt
    raise FactoryError(explain_failure(result.all_events, source))


def _is_interruption(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error
    while error is not None and error.cls_name != dg.DagsterExecutionInterruptedError.__name__:
        error = error.cause
    return error is not None


def explain_failure(events: Sequence[dg.DagsterEvent], source: str | None) -> str:
    """One sentence: which stage failed and why; for blocking checks, what they found."""
    if blocked := _failed_checks(events, source, dg.AssetCheckSeverity.ERROR):
        return "; ".join(blocked)
    for event in events:
        if event.is_step_failure:
            place = f"{event.step_key} of source {source}" if source else event.step_key
            return f"{place}: {_root_cause(event)}"
    return "; ".join(event.message or "" for event in events if event.is_run_failure) or "the run failed"


def _root_cause(event: dg.DagsterEvent) -> str:
    """The message of the innermost error of a failed step, on one line."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return " ".join(data.user_failure_data.description.split())
    error = data.error
    if error is None:
        return event.message or "failed without a message"
    while error.cause is not None:
        error = error.cause
    message = " ".join(error.message.split())
    for mistake in ("ValueError", "FileNotFoundError"):
        message = message.removeprefix(f"{mistake}: ")
    return message


def _failed_checks(
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


def _outcomes(result: dg.ExecuteInProcessResult, source: str | None) -> Iterator[StageOutcome]:
    """What a run materialised, in its order."""
    seconds = {
        event.step_key: event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.is_step_success
    }
    for event in result.get_asset_materialization_events():
        asset = event.asset_key.to_user_string() if event.asset_key else ""
        metadata = {name: value.value for name, value in event.materialization.metadata.items()}
        yield StageOutcome(asset, source, seconds.get(event.step_key, 0.0), metadata)


def check_sources(manifest: Manifest) -> tuple[str, ...]:
    """Look at every source before any work is done; their names.

    Raises:
        ValueError: one sentence for each source that cannot be read
    """
    from vipolyqwen_core.corpus.readers import check_source

    mistakes = []
    for source in manifest.sources:
        try:
            check_source(source)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return manifest.names
