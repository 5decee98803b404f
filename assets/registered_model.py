"""registered_model: a version in the registry, champion where it is better, challenger where it is not."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.checks import MODEL_CHECKS
from assets.metadata import reused, table
from assets.registry import (
    DECISION_TAG,
    RUN_TAG,
    Version,
    give_alias,
    keep_model,
    numbered_version,
    version_of_run,
)
from assets.resources import (
    ManifestResource,
    MlflowResource,
    RecipeResource,
    WorkspaceResource,
    mlflow_name,
)
from assets.trained_model import finished_run
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import REGISTERED_MODEL

if TYPE_CHECKING:  # brings SciPy along
    from vipolyqwen_core.evaluation.promotion import Decision
    from vipolyqwen_core.evaluation.results import Evaluation

CHECKED_BEFORE = ("training_set", "trained_model", "evaluation_report")
"""Assets whose checks a version carries the outcome of."""


@dg.asset(deps=["evaluation_report"], kinds={"mlflow"})
def registered_model(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult[None]:
    """A version that carries where it came from; `champion` where it is better by the recipe's rules."""
    from vipolyqwen_core.evaluation.promotion import decide
    from vipolyqwen_core.evaluation.results import read_evaluation

    place, settings = workspace.open(), recipe.load()
    run, training = finished_run(place, manifest.load(), settings)
    client = mlflow.connect()
    version = version_of_run(client, run.run_name)
    stands = version is not None
    if version is None:
        evaluation = read_evaluation(place.evaluations / run.run_name)
        decision = decide(evaluation, settings.registry)
        number = register(training.mlflow_run_id, run, evaluation)
        keep_model(place, run.output / "model", number)
        tags = {
            **origin_tags(run),
            "vipolyqwen.dagster_run_id": context.run_id,
            "vipolyqwen.checks": checks_outcome(context.instance),
            mlflow_name(f"vipolyqwen.{evaluation.primary_metric}"): f"{evaluation.primary['trained']:.4f}",
        }
        version = settle(client, number, tags, decision)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(str(version.number)),
        metadata={
            "summary": f"version {version.number}: {', '.join(version.aliases) or 'no alias any more'}",
            "model": REGISTERED_MODEL,
            "version": version.number,
            "alias": ", ".join(version.aliases) or "none any more",
            "decision": version.tags[DECISION_TAG],
            "tags": table(["tag", "value"], sorted(version.tags.items())),
            "folder": dg.MetadataValue.path(str(place.models / f"v{version.number}")),
            "reused": reused(stands),
            "MLflow run": mlflow.run_link(training.mlflow_run_id),
        },
    )


def register(run_id: str, run: TrainingRun, evaluation: "Evaluation") -> int:
    """Log the model to its run as models-from-code and register it; the number of the new version."""
    from vipolyqwen_core.serving.mlflow_model import log_registered_model
    from vipolyqwen_core.serving.model_card import ModelFacts, write_model_card

    write_model_card(run.output / "model", ModelFacts.of(run), evaluation)
    facts = {
        "run": run.run_name,
        "data_version": run.tags["data_version"],
        evaluation.primary_metric: evaluation.primary["trained"],
    }
    info = log_registered_model(run.output / "model", metadata_=facts, run_id=run_id)
    return int(info.registered_model_version)


def settle(client: Any, number: int, tags: Mapping[str, str], decision: "Decision") -> Version:
    """Tag a new version with where it came from, and give it its alias. The decision is written last."""
    for name, value in tags.items():
        client.set_model_version_tag(REGISTERED_MODEL, str(number), name, value)
    give_alias(client, number, decision.alias)
    client.set_model_version_tag(REGISTERED_MODEL, str(number), DECISION_TAG, "; ".join(decision.reasons))
    return numbered_version(client, number)


def origin_tags(run: TrainingRun) -> dict[str, str]:
    """Run, recipe, data and commit."""
    tags = {name: value for name, value in run.tags.items() if name != "recipe"}
    return {
        RUN_TAG: run.run_name,
        "vipolyqwen.recipe": run.recipe.name,
        "vipolyqwen.sources": ", ".join(sorted(run.source_weights)),
        **{f"vipolyqwen.{name}": value for name, value in tags.items()},
    }


def checks_outcome(instance: dg.DagsterInstance) -> str:
    """How many of the checks up to here passed at their last evaluation, and which did not."""
    passed, failed = 0, []
    for asset, name, _, _ in MODEL_CHECKS:
        if asset not in CHECKED_BEFORE:
            continue
        record = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(dg.AssetKey(asset), name))
        evaluation = record.evaluation if record is not None else None
        if evaluation is not None and evaluation.passed:
            passed += 1
        elif evaluation is not None:
            failed.append(f"{asset}.{name} ({evaluation.severity.value}): {evaluation.description}")
    return f"{passed} passed" + (f"; failed: {'; '.join(failed)}" if failed else "")
