"""trained_model: the training process, launched by accelerate and followed through Dagster Pipes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError  # dagster exports it nowhere

from assets import findings
from assets.metadata import reused, table
from assets.registry import champion
from assets.resources import (
    ManifestResource,
    MlflowResource,
    RecipeResource,
    WorkspaceResource,
    git_commit,
)
from vipolyqwen_core.config import Recipe, TrainingRun
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.training.identity import data_version, identified_run, refuse_built_anew
from vipolyqwen_core.training.result import METRICS_FILE, MODEL_FOLDER, TrainingResult, read_result
from vipolyqwen_core.workspace import Workspace


@dg.asset(deps=["training_set", "hard_negatives"], kinds={"pytorch"}, pool="gpu")
def trained_model(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult[None]:
    """Weights: `accelerate launch` in a subprocess; a finished run is reused, an interrupted one resumes."""
    from vipolyqwen_core.training.launch import launch_command
    from vipolyqwen_core.training.tracking import read_metrics

    place, settings, sources = workspace.open(), recipe.load(), manifest.load()
    version = data_version(place.training_set)
    refuse_unfit_data(place, settings)
    run = training_run(place, sources, settings, {"dagster_run_id": context.run_id})
    refuse_built_anew(place.training_set, version)
    result = read_result(run.output)
    stands = result is not None
    if result is None:
        champion(mlflow.connect())  # one whose alias was taken away fails the evaluation, hours later
        try:
            pipes.run(context=context, command=launch_command(run))
        except DagsterPipesExecutionError as error:
            raise training_failure(run) from error
        result = read_result(run.output)
    if result is None:
        raise training_failure(run)
    mlflow.refuse_unknown_run(result.mlflow_run_id, run.output)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(run.run_name),
        metadata={
            **training_metadata(result, read_metrics(run.output / METRICS_FILE)),
            "reused": reused(stands),
            "folder": dg.MetadataValue.path(str(run.output)),
            "model": dg.MetadataValue.path(str(run.output / MODEL_FOLDER)),
            "MLflow run": mlflow.run_link(result.mlflow_run_id),
        },
    )


def training_run(
    place: Workspace, sources: Manifest, settings: Recipe, tags: Mapping[str, str] | None = None
) -> TrainingRun:
    """The run of a recipe on the workspace's training set, with the weights of the manifest."""
    from quality.assignments import split_id
    from vipolyqwen_core.model.backbone import resolve_backbone

    found = {"git_commit": git_commit(Path(__file__).parent), "split": split_id(place.assignments)}
    return identified_run(
        place,
        settings,
        resolve_backbone(settings.backbone, place),
        {source.name: source.weight for source in sources.sources},
        tags={**(tags or {}), **{name: value for name, value in found.items() if value}},
    )


def finished_run(place: Workspace, sources: Manifest, settings: Recipe) -> tuple[TrainingRun, TrainingResult]:
    """The run of a recipe and its result.

    Raises:
        dagster.Failure: it has not finished
    """
    run = training_run(place, sources, settings)
    result = read_result(run.output)
    if result is None:
        raise dg.Failure(
            f"run {run.run_name}, the one of recipe, manifest and training set as they are now, has not "
            "finished: materialise trained_model first"
        )
    return run, result


def refuse_unfit_data(place: Workspace, settings: Recipe) -> None:
    """Ask the blocking questions about the training set once more: this may be a run of its own.

    Raises:
        dagster.Failure: it must not train
    """
    answers = {name: question(place, settings) for name, question in findings.TRAINING_SET.items()}
    failed = [f"{name}: {finding.sentence}" for name, finding in answers.items() if finding.forbids]
    if failed:
        raise dg.Failure("the training set must not train: " + "; ".join(failed))


def training_failure(run: TrainingRun) -> dg.Failure:
    """What the ranks left behind: the earliest traceback, and the ranks that left none."""
    from vipolyqwen_core.training.launch import explain_errors

    explained = explain_errors(run)
    return dg.Failure(
        explained.sentence,
        metadata={
            "folder": dg.MetadataValue.path(str(run.output)),
            "traceback": dg.MetadataValue.md(f"```\n{explained.traceback}\n```"),
        },
    )


def training_metadata(result: TrainingResult, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Losses by task, rates, and signs of collapse."""
    from vipolyqwen_core.evaluation.plots import loss_curves

    metadata: dict[str, Any] = {
        "summary": f"{result.steps:,} steps, {result.pairs_per_second:.1f} pairs/s",
        "steps": result.steps,
        "pairs seen": result.pairs,
        "pairs per second": round(result.pairs_per_second, 2),
        "refused steps": result.refused_steps,
        "exported step": result.exported_step,
        "seconds": round(result.seconds, 2),
        "last metrics": table(["metric", "value"], sorted(result.metrics.items())),
    }
    if curves := loss_curves(lines):
        metadata["loss"] = dg.MetadataValue.md(f"![loss by task]({curves})")
    return metadata
