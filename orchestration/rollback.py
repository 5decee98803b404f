"""The job `rollback`: an earlier version is champion again, and the exported table follows."""

import dagster as dg

from assets.embedding_export import export_under
from assets.registry import champion, give_alias, model_folder, numbered_version, version_with_alias
from assets.resources import MlflowResource, RecipeResource, WorkspaceResource
from orchestration.executor import signed_executor
from vipolyqwen_core.contract import CHAMPION


class RollbackConfig(dg.Config):
    """Where to go back to."""

    version: int
    """A registered version."""


@dg.op(pool="registry", out=dg.Out(dg.Nothing))
def roll_back(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    workspace: WorkspaceResource,
    mlflow: MlflowResource,
) -> None:
    """Move the alias, at once: also while a model trains, and nothing of a manifest or recipe is read.

    Raises:
        ValueError: no such version, its registration was stopped half way, or its model directory is gone
    """
    client, place = mlflow.connect(), workspace.open()
    before, target = version_with_alias(client, CHAMPION), numbered_version(client, config.version)
    if target.run_name is not None and not target.is_settled:
        raise ValueError(
            f"version {target.number} was never judged: its registration was stopped before its end; "
            "materialise registered_model, which goes on with it"
        )
    model_folder(place, target.number, target.model_digest)
    give_alias(client, target.number, CHAMPION)
    context.log.info(f"champion: version {before.number if before else 'none'} -> {target.number}")


@dg.op(pool="gpu", ins={"moved": dg.In(dg.Nothing)})
def export_champion(
    context: dg.OpExecutionContext,
    workspace: WorkspaceResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> None:
    """Export with the champion, once the GPU is free. Until the new table stands, search uses the old one."""
    version = champion(mlflow.connect())
    assert version is not None, "the alias was moved"
    exported = export_under(version, workspace.open(), recipe.load().export)
    context.log_event(
        dg.AssetMaterialization(
            "embedding_export",
            metadata=exported.metadata,
            description=f"rollback to version {version.number}",
        )
    )


@dg.job(
    description="Make an earlier version champion again and export with it.",
    executor_def=signed_executor,
    # the first of the queue; never repeated by itself, since somebody may have promoted another one by then
    tags={"dagster/priority": "10", "dagster/max_retries": "0"},
)
def rollback() -> None:
    """Roll back."""
    export_champion(moved=roll_back())
