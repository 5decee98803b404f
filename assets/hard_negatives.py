"""hard_negatives: for each training pair, wrong targets that the last exported model finds near its query."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets.embedding_export import export_under
from assets.metadata import column_schema, reused, table
from assets.registry import model_folder, version_in_use
from assets.resources import MlflowResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import MINED, MINED_TABLE, Split
from vipolyqwen_core.workspace import Workspace

if TYPE_CHECKING:
    from vipolyqwen_core.serving.current_export import CurrentExport

NUM_EXAMPLES = 8


@dg.asset(deps=["training_set"], kinds={"pytorch", "arrow"}, pool="gpu")
def hard_negatives(
    workspace: WorkspaceResource, recipe: RecipeResource, mlflow: MlflowResource
) -> dg.MaterializeResult[None]:
    """Mined hard negatives, where the recipe asks for any (`mining.negatives_per_pair`).

    The first model trains without: none is registered yet that could find them. Where one is
    registered and its table is gone, that is exported first. What was mined stands as long as training set
    and settings do.
    """
    place, settings = workspace.open(), recipe.load()
    if not settings.mining.negatives_per_pair:
        return dg.MaterializeResult(
            data_version=dg.DataVersion("none"),
            metadata={"summary": "the recipe mines none (mining.negatives_per_pair is 0)"},
        )
    from vipolyqwen_core.mining.mine import mine

    summary = mine(
        place,
        settings,
        find_model=lambda exported: exported_model(exported, place, mlflow),
        bring_back=lambda place: export_anew(place, settings.export, mlflow),
    )
    details = summary.details
    return dg.MaterializeResult(
        data_version=dg.DataVersion(summary.data_version),
        metadata={
            "summary": f"{details['negatives']:,} for {details['pairs_with_negatives']:,} of "
            f"{summary.pairs_in:,} pairs, by model version {details['teacher']}"
            if details["teacher"]
            else "nothing was exported yet: no model could find any, and training goes without",
            "dagster/row_count": summary.pairs_out,
            "dagster/column_schema": column_schema(MINED),
            "counts": table(["", ""], [(name.replace("_", " "), value) for name, value in details.items()]),
            "examples": examples(place),
            "seconds": round(summary.seconds, 2),
            "reused": reused(summary.reused),
            "folder": dg.MetadataValue.path(str(place.hard_negatives)),
        },
    )


def export_anew(place: Workspace, settings: ExportSettings, mlflow: MlflowResource) -> None:
    """Export under the model that is in use, where there is one: a workspace may have lost its table.

    Raises:
        ValueError: the table is lost, and no model is registered either
    """
    from vipolyqwen_core.mining.mine import is_lost, refuse_lost_table

    client = mlflow.connect()
    version = version_in_use(client)
    if version is not None:
        export_under(version, place, settings)
    elif is_lost(place):  # `models/v1` alone may be of a first registration that was killed
        refuse_lost_table(place)


def exported_model(exported: "CurrentExport", place: Workspace, mlflow: MlflowResource) -> Path:
    """Directory of the model of the exported table; where that of a version is gone, the registry's own.

    Raises:
        ValueError: it is neither here nor in the registry
    """
    model = Path(exported.model)
    is_registered = model.parent == place.models and exported.model_version.isdecimal()
    if (model / "config.json").is_file() or not is_registered:
        return exported.model_directory()
    mlflow.connect()
    return model_folder(place, int(exported.model_version), exported.model_digest)


def examples(place: Workspace) -> dg.MetadataValue[str]:
    """Some pairs with their nearest negative, spread over the table: is it wrong?"""
    import polars as pl

    from vipolyqwen_core.training.rows import TrainingRows

    nearest = pl.scan_ipc(place.hard_negatives / MINED_TABLE).select(
        pl.int_range(pl.len()).alias("row"),
        pl.col("negatives").list.first().alias("negative"),
        pl.col("similarities").list.first().alias("similarity"),
    )
    chosen = nearest.drop_nulls("negative").collect()
    if chosen.is_empty():
        return dg.MetadataValue.md("nothing was mined")
    chosen = chosen.gather_every(max(1, chosen.height // NUM_EXAMPLES)).head(NUM_EXAMPLES)
    pairs = TrainingRows(place.training_set / Split.TRAIN.file, ("task", "query", "target"))
    shown = [
        (*pair.values(), wrong["target"], similarity)
        for pair, wrong, similarity in zip(
            pairs.take(chosen["row"].to_numpy()),
            pairs.take(chosen["negative"].to_numpy()),
            chosen["similarity"],
            strict=True,
        )
    ]
    return table(["task", "query", "its target", "hard negative", "similarity"], shown)
