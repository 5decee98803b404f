"""registered_model: a version in the registry, champion where it is better, challenger where it is not."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.checks import MODEL_CHECKS
from assets.evaluation_report import evaluation_basis, judged_evaluation
from assets.findings import encodes_unit_vectors
from assets.metadata import reused, table
from assets.registry import (
    DECISION_TAG,
    MODEL_TAG,
    NOT_JUDGED_TAG,
    RUN_TAG,
    Version,
    champion,
    give_alias,
    half_registered,
    keep_model,
    model_place,
    numbered_version,
    version_of_run,
)
from assets.resources import (
    ManifestResource,
    MlflowResource,
    RecipeResource,
    WorkspaceResource,
)
from assets.trained_model import finished_run
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import REGISTERED_MODEL
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.mlflow_name import mlflow_name
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.training.identity import refuse_other_data
from vipolyqwen_core.training.result import MODEL_FOLDER
from vipolyqwen_core.workspace import Workspace

if TYPE_CHECKING:  # brings SciPy along
    from vipolyqwen_core.evaluation.promotion import Decision
    from vipolyqwen_core.evaluation.results import Evaluation

CHECKED_BEFORE = ("training_set", "hard_negatives", "trained_model", "evaluation_report")
"""Assets whose checks a version carries the outcome of."""

MLFLOW_COMMIT = "mlflow.source.git.commit"
"""MLflow's own tag, where it finds a checkout: also of a training that was started by hand."""
MODEL_CARD = "README.md"
MAX_DESCRIPTION_CHARS = 5000
"""Of a version, in MLflow's tables."""


@dg.asset(deps=["evaluation_report"], kinds={"mlflow"}, pool="registry")
def registered_model(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult[None]:
    """A version that carries where it came from; `champion` where it is better by the recipe's rules.

    It shares a pool with `rollback`, so nobody moves an alias between reading the champion and deciding.
    """
    from vipolyqwen_core.evaluation.promotion import decide

    place, settings, corpora = workspace.open(), recipe.load(), manifest.load()
    run, training = finished_run(place, corpora, settings)
    client = mlflow.connect()
    digest = model_digest(run.output / MODEL_FOLDER)
    version = version_of_run(client, run.run_name, digest)
    stands = version is not None
    if version is None:
        folder = place.evaluations / run.run_name
        now = champion(client)
        crowned = now is not None and now.is_of(run.run_name, digest)
        evaluation = judged_evaluation(folder, evaluation_basis(run, now), crowned)
        half = half_registered(client, run.run_name, digest)
        if half is None:
            licenses = {source.name: source.license for source in corpora.sources}
            number = register(training.mlflow_run_id, run, digest, evaluation, licenses)
        else:
            number = half.number
        kept = keep_model(place, run.output / MODEL_FOLDER, number)
        tags = {
            **origin_tags(run, client.get_run(training.mlflow_run_id).data.tags),
            "vipolyqwen.dagster_run_id": context.run_id,
            "vipolyqwen.checks": checks_outcome(context.instance, place),
            mlflow_name(f"vipolyqwen.{evaluation.primary_metric}"): f"{evaluation.primary['trained']:.4f}",
        }
        card = (kept / MODEL_CARD).read_text(encoding="utf-8")
        decision = decide(evaluation, settings.registry)
        client.update_model_version(REGISTERED_MODEL, str(number), description=described(card, decision))
        version = settle(client, number, tags, decision, kept)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(str(version.number)),
        metadata={
            "summary": f"version {version.number}: {', '.join(version.aliases) or 'no alias any more'}",
            "model": REGISTERED_MODEL,
            "version": version.number,
            "alias": ", ".join(version.aliases) or "none any more",
            "decision": version.tags[DECISION_TAG],
            "not judged": version.tags.get(NOT_JUDGED_TAG, "nothing recorded"),
            "tags": table(["tag", "value"], sorted(version.tags.items())),
            "folder": dg.MetadataValue.path(str(model_place(place, version.number, version.model_digest))),
            "reused": reused(stands),
            "MLflow run": mlflow.run_link(training.mlflow_run_id),
        },
    )


def register(
    run_id: str, run: TrainingRun, digest: str, evaluation: "Evaluation", licenses: Mapping[str, str]
) -> int:
    """Log the model to its run as models-from-code and register it; the number of the new version.

    The version names its run from the first moment: a killed registration goes on with it.

    Args:
        digest: of the run's model
        licenses: of each source, for the model card
    """
    from vipolyqwen_core.serving.model_card import ModelFacts, write_model_card
    from vipolyqwen_core.serving.registration import log_registered_model

    card = ModelFacts.of(run, licenses)
    refuse_other_data(run)
    write_model_card(run.output / MODEL_FOLDER, card, evaluation)
    facts = {
        "run": run.run_name,
        "data_version": run.tags["data_version"],
        "model_digest": digest,
        evaluation.primary_metric: evaluation.primary["trained"],
    }
    info = log_registered_model(
        run.output / MODEL_FOLDER,
        metadata_=facts,
        run_id=run_id,
        tags={RUN_TAG: run.run_name, MODEL_TAG: digest},
    )
    return int(info.registered_model_version)


def settle(client: Any, number: int, tags: Mapping[str, str], decision: "Decision", model: Path) -> Version:
    """Tag a new version with where it came from, and give it its alias. The decision is written last.

    Its model directory is tried first: the check that reports on it runs when the alias has moved already.

    Raises:
        dg.Failure: the directory makes no unit vectors
    """
    tried = encodes_unit_vectors(model)
    if not tried.passed:
        raise dg.Failure(f"version {number} gets no alias: {tried.sentence}")
    if decision.not_judged:
        tags = {**tags, NOT_JUDGED_TAG: "; ".join(decision.not_judged)}
    elif NOT_JUDGED_TAG in numbered_version(client, number).tags:  # of a decision that was killed half way
        client.delete_model_version_tag(REGISTERED_MODEL, str(number), NOT_JUDGED_TAG)
    for name, value in tags.items():
        client.set_model_version_tag(REGISTERED_MODEL, str(number), name, value)
    give_alias(client, number, decision.alias)
    client.set_model_version_tag(REGISTERED_MODEL, str(number), DECISION_TAG, "; ".join(decision.sentences))
    return numbered_version(client, number)


def described(card: str, decision: "Decision") -> str:
    """The description of a version: what was decided, and its model card without front matter, cut."""
    _, _, text = card.removeprefix("---").partition("\n---\n") if card.startswith("---") else ("", "", card)
    text = f"Registered as {decision.alias}: {'; '.join(decision.sentences)}\n\n{text.strip()}"
    return text if len(text) <= MAX_DESCRIPTION_CHARS else text[: MAX_DESCRIPTION_CHARS - 1] + "…"


def origin_tags(run: TrainingRun, of_training: Mapping[str, str]) -> dict[str, str]:
    """Run, recipe, data and commit.

    Args:
        of_training: tags of the training in MLflow, whose commit counts: this may be a later one
    """
    commit = of_training.get("git_commit") or of_training.get(MLFLOW_COMMIT)
    tags = {name: value for name, value in run.tags.items() if name not in ("recipe", "git_commit")}
    if commit:
        tags["git_commit"] = commit
    return {
        RUN_TAG: run.run_name,
        "vipolyqwen.recipe": run.recipe.name,
        "vipolyqwen.sources": ", ".join(sorted(run.source_weights)),
        **{f"vipolyqwen.{name}": value for name, value in tags.items()},
    }


def checks_outcome(instance: dg.DagsterInstance, place: Workspace) -> str:
    """How many of the checks up to here passed at their last evaluation, and which did not.

    A later run that waits in the queue has planned its own, which are none yet. Checks of a source may be of
    a version that was judged since: of those that the training set holds, their own summaries tell.
    """
    passed, failed = 0, []
    keys = [
        dg.AssetCheckKey(dg.AssetKey(asset), name)
        for asset, name, _, _ in MODEL_CHECKS
        if asset in CHECKED_BEFORE
    ]
    for key, summary in instance.event_log_storage.get_asset_check_summary_records(keys).items():
        record = summary.last_completed_check_execution_record
        evaluation = record.evaluation if record is not None else None
        if evaluation is not None and evaluation.passed:
            passed += 1
        elif evaluation is not None:
            check = f"{key.asset_key.to_user_string()}.{key.name}"
            failed.append(f"{check} ({evaluation.severity.value}): {evaluation.description}")
    return "; ".join(
        [f"{passed} passed", *([f"failed: {'; '.join(failed)}"] if failed else []), *_unmet(place)]
    )


def _unmet(place: Workspace) -> Iterator[str]:
    """Which suites the sources of the training set did not meet whole: nothing critical, or it held none."""
    from quality.data_report import failed_expectations

    summary = read_stage(place.training_set)
    lines = [] if summary is None else failed_expectations(place, summary)
    counts = Counter(f"{line['source']}.{line['suite']}" for line in lines)
    if counts:
        words = ", ".join(f"{suite} {number}" for suite, number in sorted(counts.items()))
        yield f"expectations that sources did not meet: {words}"
