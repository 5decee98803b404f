"""curated_corpus: one source, read, normalised, verified, freed of duplicates; the rest is in a ledger."""

import dagster as dg

from assets.metadata import sample_table, stage_metadata
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import PAIR


@dg.asset(kinds={"polars", "lance"})
def curated_corpus(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult[None]:
    """Pairs of one source: read, normalised, verified, without duplicates; every reject in a ledger."""
    from quality.curate import curate

    place = workspace.open()
    source = manifest.load().source(context.partition_key)
    summary = curate(source, recipe.load().curation, place)
    folder = place.curated(source.name)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **stage_metadata(summary, folder, PAIR),
            "sample": sample_table(folder / "pairs.parquet"),
            "license": source.license,
        },
    )
