"""validated_corpus: a version of a source's pairs that may train, once the expectations are met."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from assets.metadata import carried_columns, stage_metadata, table
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import TAGGED


@dg.asset(deps=["tagged_corpus"], kinds={"polars"})
def validated_corpus(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult[None]:
    """Pairs held against row rules and Great Expectations suites; accepted only if all critical ones pass."""
    from quality.accepted import judged_folder
    from quality.own_suites import own_suites
    from quality.validate import validate

    place, sources = workspace.open(), manifest.load()
    source = sources.source(context.partition_key)
    summary = validate(source, place, own_suites(sources), recipe.load().objective.positive_score)
    accepted = bool(summary.details["accepted"])
    version = judged_folder(place.validated(source.name), summary)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **stage_metadata(summary, version, TAGGED),
            "accepted": accepted,
            "dagster/column_lineage": carried_columns(TAGGED, "tagged_corpus", TAGGED),
            "expectations": expectations_table(summary.details["expectations"]),
            "data docs": dg.MetadataValue.path(summary.details["data_docs"]),
        },
    )


def expectations_table(expectations: Sequence[Mapping[str, Any]]) -> dg.MetadataValue[str]:
    """What was expected, what was observed; failures first."""
    ordered = sorted(expectations, key=lambda entry: bool(entry["success"]))
    header = ["", "suite", "expectation", "column", "severity", "observed"]
    rows = [
        (
            "ok" if entry["success"] else "**failed**",
            entry["suite"],
            entry["expectation"],
            entry["column"],
            entry["severity"],
            entry["observed"],
        )
        for entry in ordered
    ]
    return table(header, rows)
