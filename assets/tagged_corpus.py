"""tagged_corpus: the curated pairs of one source with prefix, repaired placeholders, hashes and lengths."""

import dagster as dg

from assets.metadata import carried_columns, plot, sample_table, stage_metadata
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import PAIR, TAGGED


@dg.asset(deps=["curated_corpus"], kinds={"arrow"})
def tagged_corpus(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    manifest: ManifestResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult[None]:
    """Pairs with their task prefix, as many placeholders as pictures, identity hashes, tokens and patches."""
    from quality.data_report import histograms
    from quality.polars_tables import scan_table
    from vipolyqwen_core.corpus.tagging import tag
    from vipolyqwen_core.model.backbone import resolve_backbone

    place, settings = workspace.open(), recipe.load()
    source = manifest.load().source(context.partition_key)
    summary = tag(source, settings.processing, resolve_backbone(settings.backbone, place), place)
    folder = place.tagged(source.name)
    pairs = folder / "pairs.parquet"
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **stage_metadata(summary, folder, TAGGED),
            "dagster/column_lineage": carried_columns(TAGGED, "curated_corpus", PAIR),
            "sample": sample_table(
                pairs,
                columns=("prefix", "query", "target", "query_tokens", "target_tokens", "query_patches"),
            ),
            **{title: plot(figure, title) for title, figure in histograms(scan_table(pairs))},
        },
    )
