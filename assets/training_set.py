"""training_set: all accepted sources joined, freed of duplicates across them, linked and split for good."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.metadata import column_schema, count_table, plot, sample_table, stage_metadata, table
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import TRAINING, Split

if TYPE_CHECKING:
    from quality.data_report import FunnelRow

TRAINING_SET_TAG = "vipolyqwen/training_set"
"""Tag of runs that read the training set through several steps, or rebuild it: one at a time."""
HOST_TAG = "vipolyqwen/host"
"""Tag of a run: name of the machine whose process executes it."""
READERS = ("hard_negatives", "trained_model", "evaluation_report", "registered_model", "embedding_export")
UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
PATIENCE_SECONDS = 60.0
"""Given to a run that has done its last step and is about to end."""


@dg.asset(deps=["validated_corpus"], kinds={"polars", "arrow"}, pool="gpu")
def training_set(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult[None]:
    """The manifest's sources, each at its last accepted version: joined, components formed, sticky split.

    It is rebuilt in place. The pool that it shares with its readers keeps it from any step that reads it, and
    between two steps of one run it is refused.
    """
    from quality.data_report import (
        funnel,
        histograms,
        report_is_current,
        whole_ledger,
        write_data_report,
    )
    from quality.polars_tables import scan_training_set
    from quality.report_samples import near_copies
    from quality.training_set import build_training_set

    refuse_beside_readers(context.instance, context.run_id)
    place = workspace.open()
    summary = build_training_set(manifest.load(), recipe.load(), place)
    folder = place.training_set
    report = folder / "data_report.html"
    if not report_is_current(place, report):
        write_data_report(place, report)
    ledger = whole_ledger(place, summary)
    facts = stage_metadata(summary, folder)
    del facts["assignments"]  # a digest that only the next build reads
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **facts,
            "funnel": funnel_table(funnel(place, summary)),
            "near copies": near_copies_table(near_copies(ledger, place)),
            **{title: plot(figure, title) for title, figure in histograms(scan_training_set(folder))},
            "data report": dg.MetadataValue.path(str(report)),
            "dagster/column_schema": column_schema(TRAINING),
            "training pairs": count_table(folder / Split.TRAIN.file, ("task", "source", "language")),
            "evaluation pairs": count_table(folder / Split.EVAL.file, ("task", "source", "language")),
            "sample": sample_table(folder / Split.TRAIN.file),
            "sample of the evaluation": sample_table(folder / Split.EVAL.file),
        },
    )


def refuse_beside_readers(
    instance: dg.DagsterInstance, run_id: str, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Refuse to go on while another run is between two steps that read the training set; wait for it a while.

    Raises:
        dagster.Failure: one is, and a training set under its feet would make another run of it; names it
    """
    started = time.monotonic()
    while others := [run for run in training_set_runs(instance) if run.run_id != run_id]:
        if time.monotonic() - started >= patience_seconds:
            raise dg.Failure(f"the training set stays as it is: {in_words(others[0])}")
        time.sleep(1)


def training_set_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs under way that read the training set, by job or by the assets that somebody chose."""
    readers = {dg.AssetKey(name) for name in READERS}
    return [
        run
        for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNDER_WAY))
        if TRAINING_SET_TAG in run.tags or readers & (run.asset_selection or frozenset())
    ]


def in_words(run: dg.DagsterRun) -> str:
    """The sentence for whoever has to wait for such a run. If its machine is gone, only a person ends it."""
    place = f", on {host}" if (host := run.tags.get(HOST_TAG)) else ""
    needs = f"run {run.run_id[:8]} of {run.job_name} needs it{place}"
    return f"{needs}: wait for it, or cancel it in `vipolyqwen ui`"


def funnel_table(rows: "Sequence[FunnelRow]") -> dg.MetadataValue[str]:
    """What became of each source, from its files to the two sides of the split."""
    return table([field.name for field in fields(rows[0])], [astuple(row) for row in rows])


def near_copies_table(copies: Sequence[Mapping[str, Any]]) -> dg.MetadataValue[str]:
    """Near copies that were dropped, beside the row that stays."""
    if not copies:
        return dg.MetadataValue.md("no near copy was dropped")
    cells = [
        (
            copy["source"],
            f"{copy['file']}:{copy['line']}",
            side,
            _whole(dropped),
            _whole(stays),
            copy["reason"],
        )
        for copy in copies
        for side, dropped, stays in copy["texts"]
    ]
    return table(["source", "place", "side", "dropped", "stays", "reason"], cells)


def _whole(pieces: Sequence[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)
