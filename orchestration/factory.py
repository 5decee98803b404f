"""`run_factory`: the job `corpus` for each source and then the job `model`, in this process, with progress.

The runs go to the workspace's own Dagster instance, so that the UI shows them like any others.
"""

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dagster as dg
from rich.console import Console

from assets.metadata import was_reused
from assets.resources import ManifestResource, MlflowResource
from assets.training_set import UNDER_WAY, in_words, training_set_runs
from orchestration.definitions import build_definitions, model_resources
from orchestration.explanation import explain_failure, failed_checks
from orchestration.instance import PARTITION_TAG, open_instance
from orchestration.jobs import ASSET_KEYS
from orchestration.patience import PatientHandler
from orchestration.progress import FactoryProgress, ProgressHandler, StepNews, logger_of
from orchestration.rollback import rollback
from orchestration.run_process import close_interrupted_runs, process_tags
from orchestration.settings_tags import settings_tags
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.file_lock import file_lock
from vipolyqwen_core.recipes import load_recipe
from vipolyqwen_core.serving.current_export import refuse_without_links
from vipolyqwen_core.workspace import Workspace


class FactoryError(RuntimeError):
    """A run failed; the message is one sentence for a person, and a note has the traceback of the stage."""


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
        return was_reused(self.metadata)


@dataclass(frozen=True)
class FactoryOutcome:
    """What the runs left behind, in their order."""

    stages: tuple[StageOutcome, ...]
    warnings: tuple[str, ...]
    """Checks that failed without blocking."""

    def stage(self, asset: str) -> StageOutcome:
        """The outcome of an unpartitioned asset."""
        return next(stage for stage in self.stages if stage.asset == asset)


def run_factory(workspace: Workspace, sources: str | None, recipe: str, console: Console) -> FactoryOutcome:
    """Every stage, from the manifest's sources (None: the demo corpus) to the exported table.

    Raises:
        FactoryError: a stage or a blocking check failed; names the stage and why. Or another run under way
            needs the training set, which is rebuilt in place; names the run. Or another command is at the
            same source; names its process
        KeyboardInterrupt: a person stopped it
        ValueError: the manifest, a suite of its `expectations` or the recipe is wrong, the backbone lacks
            something, a source cannot be read at all, or MLflow's server does not answer, or its database is
            damaged, or it finds no home, or the workspace's file system has no symbolic links
    """
    settings = load_recipe(recipe)
    manifest = ManifestResource(path=sources, home=str(workspace.home)).load()
    names = check_sources(manifest, settings.curation.dialogue_turns)
    if manifest.expectations:
        from quality.own_suites import own_suites  # brings Great Expectations: seconds

        own_suites(manifest)
    from vipolyqwen_core.model.backbone import check_backbone  # brings torch and transformers: seconds

    check_backbone(settings, workspace)
    refuse_without_links(workspace)
    MlflowResource(home=str(workspace.home)).prepare()
    definitions = build_definitions(workspace, sources, recipe)
    progress = FactoryProgress(console, num_stages=3 * len(names) + len(ASSET_KEYS) - 3)
    stages: list[StageOutcome] = []
    warnings: list[str] = []
    with open_instance(workspace) as instance, progress:
        for run_id in close_interrupted_runs(instance):
            console.print(f"Run {run_id[:8]} of a process that is gone was marked as failed.")
        loggers = {
            "progress": logger_of(ProgressHandler(progress), "progress on the terminal"),
            "patience": logger_of(PatientHandler(instance, console.print), "waits for a pool asleep"),
        }
        definitions = dg.Definitions.merge(definitions, dg.Definitions(loggers=loggers))
        for job, source in [*(("corpus", name) for name in names), ("model", None)]:
            with alone(workspace, source):
                refuse_while_in_use(instance, source)
                progress.source = source or ""
                result = execute(definitions.resolve_job_def(job), instance, loggers, source)
            refuse_failure(result, source)
            stages += _outcomes(result, source)
            warnings += failed_checks(result.all_events, source, dg.AssetCheckSeverity.WARN)
    return FactoryOutcome(tuple(stages), tuple(warnings))


def run_rollback(workspace: Workspace, recipe: str, version: int, console: Console) -> None:
    """Make an earlier version champion again, and export with it. No manifest is read: it may be broken.

    Raises:
        FactoryError: there is no such version, or its export failed
        KeyboardInterrupt: a person stopped it
        ValueError: MLflow's server does not answer, or its database is damaged, or it finds no home
    """
    MlflowResource(home=str(workspace.home)).prepare()
    with open_instance(workspace) as instance:
        close_interrupted_runs(instance)
        news = StepNews("roll_back", f"Version {version} is champion.", console.print)
        loggers = {
            "news": logger_of(news, "says at once that the champion is another"),
            "patience": logger_of(PatientHandler(instance, console.print), "waits for a pool asleep"),
        }
        definitions = dg.Definitions(
            jobs=[rollback], resources=model_resources(workspace, recipe), loggers=loggers
        )
        job = definitions.resolve_job_def("rollback")
        ops = {"roll_back": {"config": {"version": version}}}
        result = execute(job, instance, loggers, ops=ops)
        refuse_failure(result, None)


def execute(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    loggers: Iterable[str],
    source: str | None = None,
    ops: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """Execute a job in this process, which signs the run; whoever typed the command repeats it."""
    run_id, heeded = str(uuid4()), signal.getsignal(signal.SIGTERM)
    config = {"loggers": {name: {} for name in loggers}, "ops": ops or {}}
    try:
        return job.execute_in_process(
            instance=instance,
            partition_key=source,
            raise_on_error=False,
            run_config=config,
            run_id=run_id,
            tags={**settings_tags(job, config), **process_tags(run_id), "dagster/max_retries": "0"},
        )
    finally:
        # Dagster leaves it as SIGINT is, which a shell's background job ignores: `kill` would do nothing
        if signal.getsignal(signal.SIGTERM) is not heeded:
            signal.signal(signal.SIGTERM, heeded)


@contextmanager
def alone(workspace: Workspace, source: str | None) -> Iterator[None]:
    """One command at a time at a source, or at the model.

    Dagster tells of a run only once it has begun: two commands of the same second would not see each other.
    On a file system that knows no locks only Dagster's word is left.

    Raises:
        FactoryError: another command is at it; names its process
    """
    path = workspace.dagster_home / "locks" / (f"source-{source}" if source else "model")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if (holder := file_lock(file)) is not None:
            what = f"source {source}" if source else "the training set"
            raise FactoryError(
                f"{what} is rebuilt by this command, and another one (process {holder}) is at it: wait for "
                "it, or stop it"
            )
        yield


def refuse_while_in_use(instance: dg.DagsterInstance, source: str | None = None) -> None:
    """Refuse to begin while a run under way needs the training set, or writes the tables of the source.

    Raises:
        FactoryError: one does; names it
    """
    for run in training_set_runs(instance):
        raise FactoryError(f"the training set is rebuilt by this command, and {in_words(run)}")
    if source is not None:
        same = dg.RunsFilter(job_name="corpus", statuses=UNDER_WAY, tags={PARTITION_TAG: source})
        for run in instance.get_runs(filters=same):
            raise FactoryError(f"source {source} is rebuilt by this command, and {in_words(run)}")


def refuse_failure(result: dg.ExecuteInProcessResult, source: str | None) -> None:
    """Raise what a run failed with; nothing where it went well.

    Raises:
        KeyboardInterrupt: a person stopped it; Dagster reports that as the failure of a step
        FactoryError: it failed; names the stage and why
    """
    if result.success:
        return
    if any(_is_interruption(event) for event in result.all_events):
        raise KeyboardInterrupt
    failure = FactoryError(explain_failure(result.all_events, source))
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error is not None:
            failure.add_note(event.step_failure_data.error.to_string())
    raise failure


def _is_interruption(event: dg.DagsterEvent) -> bool:
    """Whether a step, or the waiting between two, was stopped."""
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_run_failure:
        error = event.job_failure_data.error
    else:
        return False
    while error is not None and error.cls_name != dg.DagsterExecutionInterruptedError.__name__:
        error = error.cause
    return error is not None


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


def check_sources(manifest: Manifest, dialogue_turns: str) -> tuple[str, ...]:
    """Look at every source before any work is done; their names.

    Raises:
        ValueError: one sentence for each source that cannot be read
    """
    from vipolyqwen_core.corpus.readers import check_source

    mistakes = []
    for source in manifest.sources:
        try:
            check_source(source, dialogue_turns)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return manifest.names
