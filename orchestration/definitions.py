"""The code location: `dg dev`, `dagster dev` and the factory's commands all start here.

Load everything, then apply policies to all assets at once: partitions and groups. Each source of the manifest
is a partition, in its order; one that is added there is another after a reload. Importing this takes less
than 3 seconds; heavy libraries are imported inside asset functions.
"""

from pathlib import Path
from typing import Any

import dagster as dg

import assets
from assets.checks import model_checks, source_checks
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from orchestration.ablation import pooling_ablation
from orchestration.executor import signed_executor
from orchestration.failed_runs import failed_runs
from orchestration.jobs import CORPUS_ASSETS, MODEL_ASSETS, corpus_job, model_job
from orchestration.pruning import prune
from orchestration.rollback import rollback
from orchestration.schedules import weekly_corpus, weekly_model, weekly_prune
from orchestration.sensors import accepted_data, changed_sources
from vipolyqwen_core.process_ties import SECONDS_TO_SAVE
from vipolyqwen_core.workspace import (
    Workspace,
    current_workspace,
    failure_command,
    manifest_setting,
    recipe_setting,
    time_zone_setting,
)


@dg.definitions
def defs() -> dg.Definitions:
    """The factory over the workspace, manifest and recipe that the environment asks for."""
    return build_definitions(current_workspace(), manifest_setting(), recipe_setting())


def build_definitions(workspace: Workspace, sources: str | None, recipe: str) -> dg.Definitions:
    """The factory over a workspace, a manifest (None: the demo corpus) and a recipe.

    Raises:
        ValueError: the manifest or the time zone is wrong
    """
    manifest = ManifestResource(path=sources, home=str(workspace.home))
    partitions = dg.StaticPartitionsDefinition(list(manifest.names()))
    own_checks = manifest.own_checks()
    time_zone = time_zone_setting()
    return dg.Definitions(
        assets=[
            _with_policies(asset, partitions)
            for asset in dg.load_assets_from_package_module(assets)
            if isinstance(asset, dg.AssetsDefinition)
        ],
        asset_checks=[*source_checks(partitions, own_checks), *model_checks()],
        jobs=[corpus_job(partitions), model_job(), rollback, pooling_ablation, prune],
        schedules=[
            weekly_corpus(partitions, own_checks, time_zone),
            weekly_model(time_zone),
            weekly_prune(time_zone),
        ],
        sensors=[
            changed_sources(partitions, own_checks),
            accepted_data(partitions),
            failed_runs(failure_command()),
        ],
        executor=signed_executor,
        resources={
            **model_resources(workspace, recipe),
            "manifest": manifest,
            "pipes": dg.PipesSubprocessClient(
                cwd=str(Path.cwd()), termination_timeout_seconds=SECONDS_TO_SAVE
            ),
        },
    )


def model_resources(workspace: Workspace, recipe: str) -> dict[str, Any]:
    """What a job needs that looks at no source."""
    return {
        "workspace": WorkspaceResource(home=str(workspace.home)),
        "recipe": RecipeResource(name=recipe),
        "mlflow": MlflowResource(home=str(workspace.home)),
    }


def _with_policies(
    asset: dg.AssetsDefinition, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset with what holds for all of its kind."""

    def policy(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        if name in CORPUS_ASSETS:
            return spec.replace_attributes(group_name="corpus", partitions_def=partitions)
        assert name in MODEL_ASSETS, f"asset {name} belongs to no job"
        return spec.replace_attributes(group_name="model")

    return asset.map_asset_specs(policy)
