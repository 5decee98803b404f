"""training_set: all accepted sources joined, freed of duplicates across them, linked and split for good."""

import dagster as dg

from assets.metadata import column_schema, count_table, sample_table, stage_metadata
from assets.resources import ManifestResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import TRAINING


@dg.asset(deps=["validated_corpus"], kinds={"polars", "arrow"})
def training_set(
    workspace: WorkspaceResource, manifest: ManifestResource, recipe: RecipeResource
) -> dg.MaterializeResult[None]:
    """The manifest's sources, each at its last accepted version: joined, components formed, sticky split."""
    from quality.data_report import write_data_report
    from quality.training_set import build_training_set

    place = workspace.open()
    summary = build_training_set(manifest.load(), recipe.load(), place)
    folder = place.training_set
    report = folder / "data_report.html"
    if not (summary.reused and report.is_file()):
        write_data_report(place, report)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            **stage_metadata(summary, folder),
            "data report": dg.MetadataValue.path(str(report)),
            "dagster/column_schema": column_schema(TRAINING),
            "training pairs": count_table(folder / "train.arrow", ("task", "source", "language")),
            "evaluation pairs": count_table(folder / "eval.arrow", ("task", "source", "language")),
            "sample": sample_table(folder / "train.arrow"),
            "sample of the evaluation": sample_table(folder / "eval.arrow"),
        },
    )
