"""training_set: all accepted sources joined, freed of duplicates across them, linked and split for good."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.metadata import column_schema, count_table, plot, sample_table, stage_metadata, table
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import TRAINING

if TYPE_CHECKING:
    from quality.data_report import FunnelRow


@dg.asset(deps=["validated_corpus"], kinds={"polars", "arrow"})
def training_set(
    workspace: WorkspaceResource, manifest: ManifestResource, recipe: RecipeResource
) -> dg.MaterializeResult[None]:
    """The manifest's sources, each at its last accepted version: joined, components formed, sticky split."""
    from quality.data_report import (
        funnel,
        histograms,
        report_is_current,
        training_rows,
        whole_ledger,
        write_data_report,
    )
    from quality.report_samples import near_copies
    from quality.training_set import build_training_set

    place = workspace.open()
    summary = build_training_set(manifest.load(), recipe.load(), place)
    folder = place.training_set
    report = folder / "data_report.html"
    if not report_is_current(place, report):
        write_data_report(place, report)
    ledger = whole_ledger(place, list(summary.details["sources"]))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **stage_metadata(summary, folder),
            "funnel": funnel_table(funnel(place, summary)),
            "near copies": near_copies_table(near_copies(ledger, place)),
            **{title: plot(figure, title) for title, figure in histograms(training_rows(place))},
            "data report": dg.MetadataValue.path(str(report)),
            "dagster/column_schema": column_schema(TRAINING),
            "training pairs": count_table(folder / "train.arrow", ("task", "source", "language")),
            "evaluation pairs": count_table(folder / "eval.arrow", ("task", "source", "language")),
            "sample": sample_table(folder / "train.arrow"),
            "sample of the evaluation": sample_table(folder / "eval.arrow"),
        },
    )


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
