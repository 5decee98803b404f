"""The job `rollback`: an earlier version is champion again, and the exported table follows."""

import dagster as dg

from assets.embedding_export import export_under
from assets.registry import champion, give_alias, model_folder, numbered_version
from assets.resources import MlflowResource, RecipeResource, WorkspaceResource
from vipolyqwen_core.contract import CHAMPION


class RollbackConfig(dg.Config):
    """Where to go back to."""

    version: int
    """A registered version."""


@dg.op(pool="gpu")
def roll_back(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    workspace: WorkspaceResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> None:
    """Move the alias, then export with that version. Until the new table stands, search uses the old one.

    Raises:
        ValueError: no such version, or its model directory is gone
    """
    client, place = mlflow.connect(), workspace.open()
    before, target = champion(client), numbered_version(client, config.version)
    model_folder(place, target.number)
    give_alias(client, target.number, CHAMPION)
    context.log.info(f"champion: version {before.number if before else 'none'} -> {target.number}")
    exported = export_under(target, place, recipe.load().export)
    context.log_event(
        dg.AssetMaterialization(
            "embedding_export", metadata=exported.metadata, description=f"rollback to version {target.number}"
        )
    )


@dg.job(
    description="Make an earlier version champion again and export with it.",
    executor_def=dg.in_process_executor,
)
def rollback() -> None:
    """Roll back."""
    roll_back()
