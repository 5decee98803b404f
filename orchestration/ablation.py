"""The job `pooling_ablation`: the recipe once with each kind of pooling, on the same pairs, side by side.

Each variant is a training run like any other, under `runs/` and in MLflow: one that is finished is reused.
The recipe's own pooling is the baseline, and every other one is compared with it query by query. Nothing is
registered.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg

from assets.metadata import bar_chart, plot, table
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import refuse_unfit_data, training_run
from orchestration.executor import signed_executor
from orchestration.jobs import ALONE
from vipolyqwen_core.config import LEARNED_POOLINGS, Pooling, Recipe
from vipolyqwen_core.written_aside import written_aside

if TYPE_CHECKING:  # brings SciPy along
    from vipolyqwen_core.evaluation.results import Evaluation


POOLINGS = dg.Field(
    dg.Array(dg.Enum("Pooling", [dg.EnumValue(pooling.value) for pooling in Pooling])),
    default_value=[pooling.value for pooling in Pooling],
    description="Kinds of pooling; the recipe's own is always among them.",
)
"""Dagster refuses another word before the run is launched. (`dg.Config` knows an enum by its upper-case names
alone, and takes no list of it as a default.)"""


def pooling_variants(recipe: Recipe, poolings: list[str]) -> Iterator[tuple[Pooling, Recipe]]:
    """The recipe with each kind of pooling, its own first; without the term that one cannot have."""
    own = recipe.model.pooling
    for pooling in dict.fromkeys([own, *map(Pooling, poolings)]):
        name = recipe.name if pooling is own else f"{recipe.name}-{pooling.value}"
        weight = recipe.objective.pooling_entropy_weight if pooling in LEARNED_POOLINGS else 0.0
        objective = replace(recipe.objective, pooling_entropy_weight=weight)
        model = replace(recipe.model, pooling=pooling)
        yield pooling, replace(recipe, name=name, model=model, objective=objective)


@dg.op(pool="gpu", config_schema={"poolings": POOLINGS})
def compare_poolings(
    context: dg.OpExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> None:
    """Train and evaluate each variant; the comparison is this step's metadata and `ablation.json`.

    Raises:
        TrainingFailed: a variant's training failed
    """
    from vipolyqwen_core.evaluation.evaluate import evaluate
    from vipolyqwen_core.training.launch import launch
    from vipolyqwen_core.training.result import MODEL_FOLDER, read_result

    place, settings, sources = workspace.open(), recipe.load(), manifest.load()
    refuse_unfit_data(place, settings)
    mlflow.connect()
    folder = place.evaluations / f"pooling_ablation-{settings.name}"
    found: dict[Pooling, Evaluation] = {}
    baseline = None
    for pooling, variant in pooling_variants(settings, context.op_config["poolings"]):
        run = training_run(place, sources, variant, {"dagster_run_id": context.run_id, "ablation": "pooling"})
        context.log.info(f"{pooling.value}: {run.output}")
        launch(run)
        result = read_result(run.output)
        assert result is not None, run.output
        model = run.output / MODEL_FOLDER
        found[pooling] = evaluate(
            run, model, baseline, folder / pooling.value, rival="baseline", decides=False
        )
        mlflow.log_evaluation(
            result.mlflow_run_id,
            found[pooling].metrics(),
            run.recipe.evaluation,
            folder / pooling.value,
            "ablation",
        )
        baseline = baseline or model
    summary = {pooling.value: facts(evaluation) for pooling, evaluation in found.items()}
    with written_aside(folder / "ablation.json") as aside:
        aside.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    context.add_output_metadata(ablation_metadata(found) | {"folder": dg.MetadataValue.path(str(folder))})


def facts(evaluation: "Evaluation") -> dict[str, object]:
    """One variant as numbers: its mean, the gain over the baseline, and each pool."""
    gain, metric = evaluation.gain_over_champion, evaluation.primary_metric
    return {
        "run": evaluation.run_name,
        metric: evaluation.primary["trained"],
        f"{metric} without prefix": evaluation.primary["plain"],
        "gain over the baseline": None if gain is None else [gain.mean, gain.low, gain.high],
        "pools": {pool.name: pool.scores["trained"][metric] for pool in evaluation.counted()},
    }


def ablation_metadata(found: "dict[Pooling, Evaluation]") -> dict[str, object]:
    """The variants beside each other, the baseline first, as a table and as bars."""
    first = next(iter(found.values()))
    metric, pools = first.primary_metric, [pool.name for pool in first.counted()]
    rows = []
    for pooling, evaluation in found.items():
        gain = evaluation.gain_over_champion
        by_pool = {pool.name: pool.scores["trained"][metric] for pool in evaluation.pools}
        compared = "baseline" if gain is None else str(gain)
        mean = evaluation.primary["trained"]
        rows.append((pooling.value, mean, compared, evaluation.primary["plain"], *map(by_pool.get, pools)))
    header = ["pooling", metric, "gain over the baseline", "without prefix", *pools]
    means = {pooling.value: evaluation.primary["trained"] for pooling, evaluation in found.items()}
    return {
        f"{metric} by pooling": table(header, rows),
        "plot": plot(bar_chart(means, f"mean {metric} by pooling"), f"mean {metric} by pooling"),
    }


@dg.job(
    description="Train and evaluate the recipe with each kind of pooling, on the same pairs, side by side.",
    executor_def=signed_executor,
    tags=ALONE,
)
def pooling_ablation() -> None:
    """Compare."""
    compare_poolings()
