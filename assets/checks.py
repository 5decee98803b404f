"""Asset checks: what blocks and what warns. Each asks a question of `assets.findings` and reports the answer.

A blocking check that fails stops what follows within its run. The assets that cost most ask the questions
about their inputs once more, since a later run does not remember the answers.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import getdoc
from typing import Any

import dagster as dg

from assets import findings
from assets.findings import Finding
from assets.metadata import table
from assets.registry import model_folder, version_of_run
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import finished_run
from quality.built_in_suites import BUILT_IN
from vipolyqwen_core.config import Recipe, TrainingRun
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.training.result import METRICS_FILE, MODEL_FOLDER, TrainingResult
from vipolyqwen_core.workspace import Workspace

SourceQuestion = Callable[[Workspace, str], Finding]


def report(finding: Finding, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    """A finding as Dagster records it. A failure that harms nothing is a warning."""
    metadata = {name: _shown(value) for name, value in finding.facts.items()}
    if not finding.passed and not finding.harmful:
        severity = dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=finding.passed, severity=severity, description=finding.sentence, metadata=metadata
    )


def _shown(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return table(list(value[0]), [list(row.values()) for row in value])
    return dg.MetadataValue.json(value)


def suite_question(check: str, what: str) -> SourceQuestion:
    """Whether the suites that report under a name hold for a source; `what` describes the check."""

    def question(place: Workspace, source: str) -> Finding:
        return findings.suite_holds(place, source, check)

    question.__doc__ = what
    return question


SOURCE_CHECKS: tuple[tuple[str, str, SourceQuestion], ...] = (
    ("curated_corpus", "nothing_vanishes", findings.curation_loses_nothing),
    ("curated_corpus", "has_pairs", findings.has_pairs),
    ("curated_corpus", "expectations", findings.curated_expectations),
    ("tagged_corpus", "nothing_vanishes", findings.tagging_loses_nothing),
    ("tagged_corpus", "expectations", findings.tagged_expectations),
    ("validated_corpus", "nothing_vanishes", findings.validation_loses_nothing),
    *(
        ("validated_corpus", f"suite_{check}", suite_question(check, what))
        for check, what in BUILT_IN.items()
    ),
)
"""Asset, name of the check, its question. All of them block."""


def source_checks(
    sources: dg.PartitionsDefinition[str], own: Sequence[str] = ()
) -> list[dg.AssetChecksDefinition]:
    """The checks of the three assets that are partitioned by source.

    Args:
        own: names under which suites of the user's report
    """
    checks = [
        *SOURCE_CHECKS,
        *(
            ("validated_corpus", f"own_{name}", suite_question(name, f"Expectations of one's own: {name}."))
            for name in own
        ),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", dg.PreviewWarning
        )  # partitioned checks are new, and do what is needed
        return [_source_check(*entry, sources) for entry in checks]


def _source_check(
    asset: str, name: str, question: SourceQuestion, sources: dg.PartitionsDefinition[str]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset, name=name, description=getdoc(question), blocking=True, partitions_def=sources
    )
    def check(context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource) -> dg.AssetCheckResult:
        if not context.has_partition_key:
            raise dg.Failure(
                f"{asset}.{name} is a check of one source: launch it with a partition, which is the source's "
                "name, or let a run of the asset make it"
            )
        return report(question(workspace.open(), context.partition_key), dg.AssetCheckSeverity.ERROR)

    return check


@dataclass(frozen=True)
class Asked:
    """What a question about the model's side of the factory may look at."""

    place: Workspace
    recipe: Recipe
    manifest: ManifestResource
    """Loaded where a question needs it: one that is broken by then fails as few of them as possible."""
    mlflow: MlflowResource

    def run(self) -> "tuple[TrainingRun, TrainingResult]":
        """The run of the recipe, and its result."""
        return finished_run(self.place, self.manifest.load(), self.recipe)


ModelQuestion = Callable[[Asked], Finding]


def of_recipe(question: Callable[[Workspace, Recipe], Finding]) -> ModelQuestion:
    """A question that looks at the workspace and the recipe alone."""

    @wraps(question)
    def of_asked(asked: Asked) -> Finding:
        return question(asked.place, asked.recipe)

    return of_asked


def trained_model_finite(asked: Asked) -> Finding:
    """The loss is a number, and hardly a step was refused for its gradient."""
    return findings.losses_are_finite(asked.run()[1])


def trained_model_not_collapsed(asked: Asked) -> Finding:
    """The vectors are not all alike."""
    return findings.not_collapsed(asked.run()[1].metrics)


def trained_model_loss_fell(asked: Asked) -> Finding:
    """The loss is lower at the end than at the start."""
    from vipolyqwen_core.training.tracking import read_metrics

    return findings.loss_fell(read_metrics(asked.run()[0].output / METRICS_FILE))


def evaluation_learned(asked: Asked) -> Finding:
    """The model has visibly learned. It does not block: a model that has not can be no first champion."""
    from vipolyqwen_core.evaluation.results import read_evaluation

    verdict = read_evaluation(asked.place.evaluations / asked.run()[0].run_name).verdict
    return Finding(
        passed=verdict.learned,
        sentence="; ".join(verdict.failures) or f"all {len(verdict.facts)} conditions hold",
        facts={"holds": list(verdict.facts), "does not hold": list(verdict.failures)},
    )


def registered_model_encodes(asked: Asked) -> Finding:
    """The registered directory loads on its own and encodes a text and a picture."""
    run, _ = asked.run()
    digest = model_digest(run.output / MODEL_FOLDER)
    version = version_of_run(asked.mlflow.connect(), run.run_name, digest)
    if version is None:
        return Finding(passed=False, sentence="the run has no registered version")
    model = model_folder(asked.place, version.number, version.model_digest)
    return findings.encodes_unit_vectors(model)


BLOCKING, WARNING = True, False

MODEL_CHECKS: tuple[tuple[str, str, ModelQuestion, bool], ...] = (
    *(
        ("training_set", name, of_recipe(question), BLOCKING)
        for name, question in findings.TRAINING_SET.items()
    ),
    ("hard_negatives", "wrong_answers", of_recipe(findings.negatives_are_wrong), BLOCKING),
    ("trained_model", "finite", trained_model_finite, BLOCKING),
    ("trained_model", "not_collapsed", trained_model_not_collapsed, BLOCKING),
    ("trained_model", "loss_fell", trained_model_loss_fell, WARNING),
    ("evaluation_report", "learned", evaluation_learned, WARNING),
    ("registered_model", "encodes", registered_model_encodes, BLOCKING),
    ("embedding_export", "complete", of_recipe(findings.export_is_complete), BLOCKING),
)
"""Asset, name of the check, its question, whether it blocks."""


def model_checks() -> list[dg.AssetChecksDefinition]:
    """The checks of the assets that are not partitioned."""
    return [_model_check(*entry) for entry in MODEL_CHECKS]


def _model_check(asset: str, name: str, question: ModelQuestion, blocking: bool) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(asset=asset, name=name, description=getdoc(question), blocking=blocking)
    def check(
        workspace: WorkspaceResource,
        recipe: RecipeResource,
        manifest: ManifestResource,
        mlflow: MlflowResource,
    ) -> dg.AssetCheckResult:
        return report(question(Asked(workspace.open(), recipe.load(), manifest, mlflow)), severity)

    return check
