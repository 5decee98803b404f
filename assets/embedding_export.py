"""embedding_export: the vectors of the corpus under the champion, as Parquet and a LanceDB table."""

import dagster as dg

from assets.metadata import column_schema, reused, table
from assets.registry import Version, model_folder, version_in_use
from assets.resources import MlflowResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import EXPORT
from vipolyqwen_core.workspace import Workspace


@dg.asset(deps=["training_set", "registered_model"], kinds={"lancedb", "parquet"}, pool="gpu")
def embedding_export(
    workspace: WorkspaceResource, recipe: RecipeResource, mlflow: MlflowResource
) -> dg.MaterializeResult[None]:
    """Vectors of both sides of every pair under the version in use; only what is new is encoded."""
    client = mlflow.connect()
    version = version_in_use(client)
    if version is None:
        raise dg.Failure(
            "neither champion nor challenger is registered: materialise registered_model first, or, where "
            "somebody took the alias away, give it back with `vipolyqwen rollback VERSION`"
        )
    return export_under(version, workspace.open(), recipe.load().export)


def export_under(version: Version, place: Workspace, settings: ExportSettings) -> dg.MaterializeResult[None]:
    """Export the training set's pairs with the model of a version."""
    from vipolyqwen_core.serving.export import export

    model = model_folder(place, version.number, version.model_digest)
    summary = export(place.training_set, model, str(version.number), place, settings)
    rows = [("encoded", summary.encoded), ("kept", summary.kept), ("updated", summary.updated)]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": summary.rows,
            "dagster/column_schema": column_schema(EXPORT),
            "summary": f"{summary.rows:,} rows under version {version.number}, {summary.encoded:,} encoded",
            "model version": version.number,
            "alias": ", ".join(version.aliases),
            "rows": table(["rows", ""], [*rows, ("deleted", summary.deleted)]),
            "vector index": summary.indexed,
            "reused": reused(summary.reused),
            "Parquet": dg.MetadataValue.path(str(summary.parquet)),
            "LanceDB table": dg.MetadataValue.path(str(summary.table)),
            "seconds": round(summary.seconds, 2),
        },
    )
