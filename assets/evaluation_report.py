"""evaluation_report: the trained model judged beside chance, BM25, its untrained self and the champion."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.metadata import bar_chart, plot, reused, table
from assets.registry import (
    DECISION_TAG,
    Version,
    champion,
    model_folder,
    numbered_version,
    version_of_run,
)
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from assets.trained_model import finished_run
from vipolyqwen_core.config import TrainingRun, to_json
from vipolyqwen_core.contract import CHAMPION
from vipolyqwen_core.corpus.tables import read_json
from vipolyqwen_core.evaluation import EVALUATION_FILE, REPORT_FILE
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.training.result import MODEL_FOLDER, RESULT_FILE
from vipolyqwen_core.written_aside import written_aside

if TYPE_CHECKING:  # brings SciPy along
    from vipolyqwen_core.evaluation.results import Evaluation, PoolResult

BASIS_FILE = "basis.json"
"""Beside an evaluation: what it depends on, and the digest of the evaluation itself, so that neither one of
another champion nor one that somebody made by hand is taken for it."""
OF_THE_CHAMPION = {"champion", "champion_model", "apart"}
"""Keys of a basis."""


@dg.asset(deps=["trained_model"], kinds={"pytorch"}, pool="gpu")
def evaluation_report(
    workspace: WorkspaceResource, manifest: ManifestResource, recipe: RecipeResource, mlflow: MlflowResource
) -> dg.MaterializeResult[None]:
    """Retrieval and similarity by task and language on pairs that no model was trained on; one HTML file."""
    place = workspace.open()
    run, training = finished_run(place, manifest.load(), recipe.load())
    client = mlflow.connect()
    digest = model_digest(run.output / MODEL_FOLDER)
    registered, rival = version_of_run(client, run.run_name, digest), champion(client)
    crowned = rival is not None and rival.is_of(run.run_name, digest)
    folder = place.evaluations / run.run_name
    settled = crowned or registered is not None
    if settled:  # nobody is a rival of himself
        rival = champion_of_then(client, folder, otherwise=None if crowned else rival)
    basis = evaluation_basis(run, rival)
    evaluation = stored_evaluation(folder, basis, settled)
    stands = evaluation is not None
    if evaluation is None:
        from vipolyqwen_core.evaluation.evaluate import evaluate

        try:
            beside = None if rival is None else model_folder(place, rival.number, rival.model_digest)
        except ValueError:
            if not settled:
                raise
            rival = beside = None  # lost since; what was decided stands
            basis = evaluation_basis(run, rival)
        evaluation = evaluate(
            run,
            run.output / MODEL_FOLDER,
            beside,
            folder,
            basis["apart"],
            rival=CHAMPION if rival is None else f"{CHAMPION} (version {rival.number})",
            decided=None if registered is None else decision_of(registered),
        )
        mlflow.log_evaluation(training.mlflow_run_id, evaluation.metrics(), run.recipe.evaluation, folder)
        write_basis(folder, basis)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(hashlib.blake2b(json.dumps(basis).encode(), digest_size=16).hexdigest()),
        metadata={
            **evaluation_metadata(evaluation),
            "reused": reused(stands),
            "folder": dg.MetadataValue.path(str(folder)),
            "report": dg.MetadataValue.path(str(folder / REPORT_FILE)),
            "report in MLflow": mlflow.run_link(training.mlflow_run_id, f"evaluation/{REPORT_FILE}"),
            "MLflow run": mlflow.run_link(training.mlflow_run_id),
        },
    )


def champion_of_then(client: Any, folder: Path, otherwise: Version | None) -> Version | None:
    """The champion that the evaluation in a folder was held against, None where there was none yet.

    Args:
        otherwise: stands in for one that is not known any more
    """
    file = folder / BASIS_FILE
    if not file.is_file():
        return otherwise
    basis: dict[str, Any] = read_json(file)
    if basis["champion"] is None:
        return None
    try:
        version = numbered_version(client, basis["champion"])
    except ValueError:  # deleted since
        return otherwise
    # the registry may be another one by now
    return version if version.model_digest == basis.get("champion_model") else otherwise


def decision_of(version: Version) -> str:
    """What was decided about a version, for a person."""
    return f"Version {version.number}: {version.tags[DECISION_TAG]}"


def is_of_other_split(rival: Version, run: TrainingRun) -> bool:
    """Whether a version was trained under another split, as far as its own is known."""
    return rival.split not in (None, run.tags.get("split"))


def evaluation_basis(run: TrainingRun, rival: Version | None) -> dict[str, Any]:
    """Everything an evaluation depends on. The rival is the champion; `apart`: it is of another split."""
    from vipolyqwen_core.evaluation.results import VERSION

    return {
        "version": VERSION,
        "result": file_digest(run.output / RESULT_FILE),
        "settings": json.loads(to_json(run.recipe.evaluation)),
        "registry": json.loads(to_json(run.recipe.registry)),
        "positive_score": run.recipe.objective.positive_score,
        "champion": None if rival is None else rival.number,
        "champion_model": None if rival is None else rival.model_digest,  # another registry, another model
        "apart": rival is not None and is_of_other_split(rival, run),
    }


def write_basis(folder: Path, basis: Mapping[str, Any]) -> None:
    """Say what the evaluation in a folder rests on."""
    with written_aside(folder / BASIS_FILE) as aside:
        content = {**basis, "evaluation": file_digest(folder / EVALUATION_FILE)}
        aside.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_basis(folder: Path) -> dict[str, Any] | None:
    """What the evaluation in a folder rests on; None: there is none, or it is not the one that was judged."""
    file, evaluation = folder / BASIS_FILE, folder / EVALUATION_FILE
    if not (file.is_file() and evaluation.is_file()):
        return None
    basis: dict[str, Any] = read_json(file)
    return basis if basis.get("evaluation") == file_digest(evaluation) else None


def stored_evaluation(folder: Path, basis: Mapping[str, Any], settled: bool) -> "Evaluation | None":
    """The evaluation in a folder if it rests on the same basis; None: evaluate.

    Once the run is registered, its judgement is settled: neither a later champion nor other rules of
    promotion, which the report applies, reopen it.
    """
    from vipolyqwen_core.evaluation.results import read_evaluation

    before = read_basis(folder)
    if before is None or not (folder / REPORT_FILE).is_file():
        return None
    passed_over = {*OF_THE_CHAMPION, "registry"} if settled else set()
    return read_evaluation(folder) if _differing(before, basis) <= passed_over else None


def judged_evaluation(folder: Path, basis: Mapping[str, Any], crowned: bool) -> "Evaluation":
    """The evaluation that a decision may rest on: of these weights, against the champion of this moment.

    Args:
        basis: what an evaluation depends on now; the rules of promotion are applied now
        crowned: whether the run is champion itself: killed between its alias and its last tag, it was
            decided on already
    Raises:
        dg.Failure: there is none, or something has changed since
    """
    from vipolyqwen_core.evaluation.results import read_evaluation

    before = read_basis(folder)
    if before is None:
        raise dg.Failure(f"no evaluation in {folder} to decide on: materialise evaluation_report first")
    differing = _differing(before, basis) - {"registry"} - (OF_THE_CHAMPION if crowned else set())
    if differing & {"champion", "champion_model"}:
        held, now = before["champion"] or "none", basis["champion"] or "none"
        other = " of another model" if held == now else ""
        raise dg.Failure(
            f"the evaluation was held against champion {held}{other}, but the champion is {now} by now: "
            "materialise evaluation_report again"
        )
    if differing:
        raise dg.Failure(
            f"the evaluation is one of before ({', '.join(sorted(differing))}): materialise "
            "evaluation_report again"
        )
    return read_evaluation(folder)


def _differing(before: Mapping[str, Any], basis: Mapping[str, Any]) -> set[str]:
    return {name for name in basis if before.get(name) != basis[name]}


def file_digest(path: Path) -> str:
    """32 hex digits: hash of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def evaluation_metadata(evaluation: "Evaluation") -> dict[str, Any]:
    """Metrics by pool beside the other systems, the verdict, and a plot of the means."""
    from vipolyqwen_core.evaluation.results import CHANCE, TRAINED, UNTRAINED

    metric, labels = evaluation.primary_metric, evaluation.labels
    similarity = [
        (result.language, result.num_pairs, labels[system], scores.get("spearman"), scores.get("pearson"))
        for result in evaluation.similarities
        for system, scores in result.scores.items()
    ]
    verdict = [("for", fact) for fact in evaluation.verdict.facts]
    verdict += [("**against**", failure) for failure in evaluation.verdict.failures]
    trained, untrained = evaluation.primary[TRAINED], evaluation.primary[UNTRAINED]
    champion = evaluation.gain_over_champion
    gain = {"gain over the champion": str(champion), "held against": evaluation.rival} if champion else {}
    across = [
        (
            pool.name + ("" if pool.is_large else " *"),
            pool.num_pairs,
            *(pool.scores[system].get(metric) for system in (TRAINED, CHANCE)),
        )
        for pool in evaluation.cross_lingual
    ]
    means = {labels[system]: value for system, value in evaluation.primary.items()}
    found: dict[str, Any] = {
        "summary": f"{metric} {trained:.3f}, untrained {untrained:.3f}",
        "learned": evaluation.verdict.learned,
        "verdict": table(["", "sentence"], verdict),
        metric: trained,
        **gain,
        f"{metric} by pool, accuracy of choices": pool_table(evaluation.pools, labels),
        "scored pairs": table(["language", "pairs", "system", "Spearman", "Pearson"], similarity),
        "systems": plot(bar_chart(means, f"mean {metric} by system"), f"mean {metric} by system"),
    }
    if across:
        found["across languages"] = table(
            ["asked > answered, * too small to tell", "pairs", metric, "chance"], across
        )
    if evaluation.matryoshka:
        found["shorter vectors"] = table(["dimensions", metric], list(evaluation.matryoshka.items()))
    return found | {"dagster/row_count": evaluation.num_rows, "seconds": round(evaluation.seconds, 2)}


def pool_table(pools: "Sequence[PoolResult]", labels: Mapping[str, str]) -> dg.MetadataValue[str]:
    """Each pool under every system, by the metric that judges it.

    Args:
        labels: names of the systems
    """
    from vipolyqwen_core.evaluation.metrics import judging_metric
    from vipolyqwen_core.evaluation.results import CHANCE, SYSTEMS, TRAINED

    shown = [system for system in SYSTEMS if any(system in pool.scores for pool in pools)]
    header = [
        "pool",
        "pairs",
        "targets",
        "in the mean",
        *(labels[system] for system in shown),
        "gain over untrained",
        "recall@1",
        "chance@1",
    ]
    rows = [
        (
            pool.name,
            pool.num_pairs,
            pool.num_targets,
            "yes" if pool.counts else "",
            *(pool.scores.get(system, {}).get(judging_metric(pool.is_choice)) for system in shown),
            pool.gain_over_untrained,
            pool.scores[TRAINED].get("recall@1"),
            pool.scores[CHANCE].get("recall@1"),
        )
        for pool in pools
    ]
    return table(header, rows)
