"""Asset checks: what blocks and what warns. Each asks a question of `assets.findings` and reports the answer.

A blocking check that fails stops what follows within its run. The assets that cost most ask the questions
about their inputs once more, since a later run does not remember the answers.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets import findings
from assets.findings import Finding
from assets.metadata import table
from assets.registry import model_folder, version_of_run
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import finished_run
from vipolyqwen_core.config import Recipe, TrainingRun
from vipolyqwen_core.contract import Task
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace

if TYPE_CHECKING:  # brings PyTorch along
    from vipolyqwen_core.training.result import TrainingResult

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


def curated_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Records that were read gave pairs or are in the ledger, and so are all pairs."""
    return findings.curation_loses_nothing(place.curated(source))


def curated_has_pairs(place: Workspace, source: str) -> Finding:
    """At least one pair is left."""
    return findings.has_pairs(place.curated(source))


def tagged_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Curated pairs are in the tagged table or in its ledger."""
    folder = place.tagged(source)
    return findings.stage_loses_nothing(
        "tagged", place.curated(source) / "pairs.parquet", folder / "pairs.parquet", folder / "ledger.parquet"
    )


def validated_nothing_vanishes(place: Workspace, source: str) -> Finding:
    """Tagged pairs are in the validated table or in its ledger."""
    return findings.validation_loses_nothing(place.tagged(source) / "pairs.parquet", place.validated(source))


def curated_expectations(place: Workspace, source: str) -> Finding:
    """The suite of curated pairs: schema, ranges, languages, lengths, no answer in its query."""
    from quality.stage_expectations import judge_curated

    return findings.expectations_hold(judge_curated(source, place))


def tagged_expectations(place: Workspace, source: str) -> Finding:
    """The suite of tagged pairs: prefix, placeholders, identities, tokens."""
    from quality.stage_expectations import judge_tagged

    return findings.expectations_hold(judge_tagged(source, place))


def suite_question(check: str, what: str) -> SourceQuestion:
    """Whether the suites that report under a name hold for the last judgement of a source."""

    def question(place: Workspace, source: str) -> Finding:
        return findings.suite_holds(place.validated(source), check)

    question.__doc__ = what
    return question


BLOCKING, WARNING = True, False

SUITES = {
    "validated": "What holds for every pair that may train: prefix, placeholders, tokens, scores.",
    **{f"task_{task.value}": f"What holds for the pairs of task {task.value}." for task in Task},
    "balance": "No answer and no score drowns the others of its task.",
    "stages": "Schemas, order, both equations, and the shares of rejects, duplicates and languages.",
    "pictures": "Every picture that is named is stored, and of a size that can be read.",
    "drift": "Volume, languages, tasks, lengths and scores are near those of the last accepted version.",
}
"""Suites of validation, each an asset check. Where a critical expectation fails, nothing trains on it."""

SOURCE_CHECKS: tuple[tuple[str, str, SourceQuestion, bool], ...] = (
    ("curated_corpus", "nothing_vanishes", curated_nothing_vanishes, BLOCKING),
    ("curated_corpus", "has_pairs", curated_has_pairs, BLOCKING),
    ("curated_corpus", "expectations", curated_expectations, BLOCKING),
    ("tagged_corpus", "nothing_vanishes", tagged_nothing_vanishes, BLOCKING),
    ("tagged_corpus", "expectations", tagged_expectations, BLOCKING),
    ("validated_corpus", "nothing_vanishes", validated_nothing_vanishes, BLOCKING),
    *(
        ("validated_corpus", f"suite_{check}", suite_question(check, what), BLOCKING)
        for check, what in SUITES.items()
    ),
)
"""Asset, name of the check, its question, whether it blocks."""


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
            (
                "validated_corpus",
                f"own_{name}",
                suite_question(name, f"Expectations of one's own: {name}."),
                BLOCKING,
            )
            for name in own
        ),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", dg.PreviewWarning
        )  # partitioned checks are new, and do what is needed
        return [_source_check(*entry, sources) for entry in checks]


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
    manifest: ManifestResource
    """Loaded where a question needs it: one that is broken by then fails as few of them as possible."""
    mlflow: MlflowResource

    def run(self) -> "tuple[TrainingRun, TrainingResult]":
        """The run of the recipe, and its result."""
        return finished_run(self.place, self.manifest.load(), self.recipe)


ModelQuestion = Callable[[Asked], Finding]


def training_set_nothing_vanishes(asked: Asked) -> Finding:
    """Each source's accepted pairs train, evaluate, or are in the ledger."""
    return findings.sources_are_accounted_for(asked.place.training_set)


def training_set_both_splits(asked: Asked) -> Finding:
    """There are pairs to train on, and pairs to evaluate on of which some can be ranked."""
    return findings.both_splits(asked.place.training_set, asked.recipe.objective.positive_score)


def training_set_largest_component(asked: Asked) -> Finding:
    """No component of linked rows holds more than its share; else the links are wrong."""
    return findings.largest_component(asked.place.training_set, asked.recipe.split)


def training_set_no_leak(asked: Asked) -> Finding:
    """Training and evaluation share no component, picture, declared group or long text."""
    return findings.no_leak(asked.place.training_set, asked.recipe.curation.min_linking_chars)


def training_set_expected(asked: Asked) -> Finding:
    """The suites of the training set: schemas, rows, shares of sources, and both sides of the split alike."""
    return findings.training_set_expectations(asked.place)


def mined_negatives_are_wrong(asked: Asked) -> Finding:
    """No mined hard negative is a right answer that some pair declares, and each is of the row's task."""
    return findings.negatives_are_wrong(asked.place, asked.recipe)


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
    run, _ = asked.run()
    digest = model_digest(run.output / "model")
    version = version_of_run(asked.mlflow.connect(), run.run_name, digest)
    if version is None:
        return Finding(passed=False, sentence="the run has no registered version")
    model = model_folder(asked.place, version.number, version.model_digest)
    return findings.encodes_unit_vectors(model)


def export_complete(asked: Asked) -> Finding:
    """Each side of each pair has one row and a vector of length 1, in Parquet and in the table."""
    return findings.export_is_complete(asked.place)


MODEL_CHECKS: tuple[tuple[str, str, ModelQuestion, bool], ...] = (
    ("training_set", "nothing_vanishes", training_set_nothing_vanishes, BLOCKING),
    ("training_set", "both_splits", training_set_both_splits, BLOCKING),
    ("training_set", "largest_component", training_set_largest_component, BLOCKING),
    ("training_set", "no_leak", training_set_no_leak, BLOCKING),
    ("training_set", "expectations", training_set_expected, BLOCKING),
    ("hard_negatives", "wrong_answers", mined_negatives_are_wrong, BLOCKING),
    ("trained_model", "finite", trained_model_finite, BLOCKING),
    ("trained_model", "not_collapsed", trained_model_not_collapsed, BLOCKING),
    ("trained_model", "loss_fell", trained_model_loss_fell, WARNING),
    ("evaluation_report", "learned", evaluation_learned, WARNING),
    ("registered_model", "encodes", registered_model_encodes, BLOCKING),
    ("embedding_export", "complete", export_complete, BLOCKING),
)
"""Asset, name of the check, its question, whether it blocks."""


def model_checks() -> list[dg.AssetChecksDefinition]:
    """The checks of the assets that are not partitioned."""
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
        return report(question(Asked(workspace.open(), recipe.load(), manifest, mlflow)), severity)

    return check
