"""Asset checks: what blocks and what warns. Each asks a question of `assets.findings` and reports the answer.

A blocking check that fails stops what follows within its run. The assets that cost most ask the questions
about their inputs once more, since a later run does not remember the answers.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from assets import findings
from assets.findings import Finding
from assets.registry import model_folder, version_of_run
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import finished_run
from vipolyqwen_core.config import Recipe, TrainingRun
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.workspace import Workspace

if TYPE_CHECKING:  # brings PyTorch along
    from vipolyqwen_core.training.result import TrainingResult

SourceQuestion = Callable[[Workspace, str], Finding]


def report(finding: Finding, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    """A finding as Dagster records it."""
    plain = (int, float, str)
    metadata = {
        name: value if isinstance(value, plain) else dg.MetadataValue.json(value)
        for name, value in finding.facts.items()
    }
    return dg.AssetCheckResult(
        passed=finding.passed, severity=severity, description=finding.sentence, metadata=metadata
    )


def curated_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Records that were read gave pairs or are in the ledger, and so are all pairs."""
    return findings.curation_loses_nothing(place.curated(source))


def curated_has_pairs(place: Workspace, source: str) -> Finding:
    """At least one pair is left."""
    return findings.has_pairs(place.curated(source) / "pairs.parquet")


def tagged_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Curated pairs are in the tagged table or in its ledger."""
    folder = place.tagged(source)
    return findings.stage_loses_nothing(
        "tagged", place.curated(source) / "pairs.parquet", folder / "pairs.parquet", folder / "ledger.parquet"
    )


def validated_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Tagged pairs are in the validated table or in its ledger."""
    return findings.validation_loses_nothing(place.tagged(source) / "pairs.parquet", place.validated(source))


def critical_expectations(place: Workspace, source: str) -> Finding:
    """All expectations of severity critical hold; else the last accepted version stays in use."""
    return findings.expectations_hold(place.validated(source), "critical")


def warning_expectations(place: Workspace, source: str) -> Finding:
    """All expectations of severity warning hold."""
    return findings.expectations_hold(place.validated(source), "warning")


BLOCKING, WARNING = True, False

SOURCE_CHECKS: tuple[tuple[str, str, SourceQuestion, bool], ...] = (
    ("curated_corpus", "nothing_vanishes", curated_nothing_vanishes, BLOCKING),
    ("curated_corpus", "has_pairs", curated_has_pairs, BLOCKING),
    ("tagged_corpus", "nothing_vanishes", tagged_nothing_vanishes, BLOCKING),
    ("validated_corpus", "nothing_vanishes", validated_nothing_vanishes, BLOCKING),
    ("validated_corpus", "critical_expectations", critical_expectations, BLOCKING),
    ("validated_corpus", "warning_expectations", warning_expectations, WARNING),
)
"""Asset, name of the check, its question, whether it blocks."""


def source_checks(sources: dg.PartitionsDefinition[str]) -> list[dg.AssetChecksDefinition]:
    """The checks of the three assets that are partitioned by source."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", dg.PreviewWarning
        )  # partitioned checks are new, and do what is needed
        return [_source_check(*entry, sources) for entry in SOURCE_CHECKS]


def _source_check(
    asset: str, name: str, question: SourceQuestion, blocking: bool, sources: dg.PartitionsDefinition[str]
) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(
        asset=asset, name=name, description=question.__doc__, blocking=blocking, partitions_def=sources
    )
    def check(context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource) -> dg.AssetCheckResult:
        return report(question(workspace.open(), context.partition_key), severity)

    return check


@dataclass(frozen=True)
class Asked:
    """What a question about the model's side of the factory may look at."""

    place: Workspace
    recipe: Recipe
    manifest: Manifest
    mlflow: MlflowResource

    def run(self) -> "tuple[TrainingRun, TrainingResult]":
        """The run of the recipe, and its result."""
        return finished_run(self.place, self.manifest, self.recipe)


ModelQuestion = Callable[[Asked], Finding]


def training_set_nothing_vanishes(asked: Asked) -> Finding:
    """Each source's accepted pairs train, evaluate, or are in the ledger."""
    return findings.sources_are_accounted_for(asked.place.training_set)


def training_set_both_splits(asked: Asked) -> Finding:
    """There are pairs to train on and pairs to evaluate on."""
    return findings.both_splits(asked.place.training_set)


def training_set_largest_component(asked: Asked) -> Finding:
    """No component of linked rows holds more than its share; else the links are wrong."""
    return findings.largest_component(asked.place.training_set, asked.recipe.split)


def training_set_no_leak(asked: Asked) -> Finding:
    """Training and evaluation share no component, picture, declared group or long text."""
    return findings.no_leak(asked.place.training_set, asked.recipe.curation.min_linking_chars)


def trained_model_finite(asked: Asked) -> Finding:
    """The loss is a number, and hardly a step was refused for its gradient."""
    return findings.losses_are_finite(asked.run()[1])


def trained_model_not_collapsed(asked: Asked) -> Finding:
    """The vectors are not all alike."""
    return findings.not_collapsed(asked.run()[1].metrics)


def trained_model_loss_fell(asked: Asked) -> Finding:
    """The loss is lower at the end than at the start."""
    from vipolyqwen_core.training.tracking import read_metrics

    return findings.loss_fell(read_metrics(asked.run()[0].output / "metrics.jsonl"))


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
    version = version_of_run(asked.mlflow.connect(), asked.run()[0].run_name)
    if version is None:
        return Finding(passed=False, sentence="the run has no registered version")
    return findings.encodes_unit_vectors(model_folder(asked.place, version.number))


def export_complete(asked: Asked) -> Finding:
    """Each side of each pair has one row and a vector of length 1, in Parquet and in the table."""
    return findings.export_is_complete(asked.place)


MODEL_CHECKS: tuple[tuple[str, str, ModelQuestion, bool], ...] = (
    ("training_set", "nothing_vanishes", training_set_nothing_vanishes, BLOCKING),
    ("training_set", "both_splits", training_set_both_splits, BLOCKING),
    ("training_set", "largest_component", training_set_largest_component, BLOCKING),
    ("training_set", "no_leak", training_set_no_leak, BLOCKING),
    ("trained_model", "finite", trained_model_finite, BLOCKING),
    ("trained_model", "not_collapsed", trained_model_not_collapsed, BLOCKING),
    ("trained_model", "loss_fell", trained_model_loss_fell, WARNING),
    ("evaluation_report", "learned", evaluation_learned, WARNING),
    ("registered_model", "encodes", registered_model_encodes, BLOCKING),
    ("embedding_export", "complete", export_complete, BLOCKING),
)
"""Asset, name of the check, its question, whether it blocks."""


def model_checks() -> list[dg.AssetChecksDefinition]:
    """The checks of the five assets that are not partitioned."""
    return [_model_check(*entry) for entry in MODEL_CHECKS]


def _model_check(asset: str, name: str, question: ModelQuestion, blocking: bool) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(asset=asset, name=name, description=question.__doc__, blocking=blocking)
    def check(
        workspace: WorkspaceResource,
        recipe: RecipeResource,
        manifest: ManifestResource,
        mlflow: MlflowResource,
    ) -> dg.AssetCheckResult:
        return report(question(Asked(workspace.open(), recipe.load(), manifest.load(), mlflow)), severity)

    return check
