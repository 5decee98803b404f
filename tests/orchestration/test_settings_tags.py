"""What the list of runs says of a run's settings."""

from pathlib import Path

import dagster as dg
import pytest

from assets.resources import ManifestResource, RecipeResource
from orchestration.definitions import build_definitions
from orchestration.executor import signed_executor
from orchestration.factory import execute
from orchestration.settings_tags import MANIFEST_TAG, RECIPE_TAG, settings_tags
from vipolyqwen_core.workspace import Workspace

RECIPE, MANIFEST = "examples/recipe.json", "examples/manifest.yaml"
OTHER = {"resources": {"recipe": {"config": {"name": "demo"}}}}


@dg.op
def look(recipe: RecipeResource, manifest: ManifestResource) -> None: ...


@dg.job(
    executor_def=signed_executor,
    resource_defs={
        "recipe": RecipeResource(name=RECIPE),
        "manifest": ManifestResource(path=MANIFEST, home="home"),
    },
)
def looking() -> None:
    look()


@pytest.mark.parametrize(("config", "recipe"), [({}, RECIPE), (OTHER, "demo")])
def test_a_run_of_the_ui_is_tagged_with_the_settings_that_it_takes(
    tmp_path: Path, config: dict[str, object], recipe: str
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert dg.execute_job(dg.reconstructable(looking), instance, run_config=config).success
        (run,) = instance.get_runs()
    assert (run.tags[RECIPE_TAG], run.tags[MANIFEST_TAG]) == (recipe, "manifest.yaml")


def test_a_run_of_a_terminal_is_tagged_with_its_settings() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert execute(looking, instance, []).success
        (run,) = instance.get_runs()
    assert (run.tags[RECIPE_TAG], run.tags[MANIFEST_TAG]) == (RECIPE, "manifest.yaml")


def test_every_job_is_tagged_with_what_it_takes(tmp_path: Path) -> None:
    definitions = build_definitions(Workspace(tmp_path), None, "demo")
    both = {RECIPE_TAG: "demo", MANIFEST_TAG: "demo corpus"}
    for job in ("corpus", "model", "pooling_ablation"):
        assert settings_tags(definitions.resolve_job_def(job), {}) == both
    config = {"ops": {"roll_back": {"config": {"version": 1}}}}
    assert settings_tags(definitions.resolve_job_def("rollback"), config) == {RECIPE_TAG: "demo"}
    assert settings_tags(definitions.resolve_job_def("prune"), {}) == {}
