"""What assets are handed stays the same from the first step of a run to its last check."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import yaml

from assets.resources import ManifestResource, RecipeResource
from vipolyqwen_core.config import to_json
from vipolyqwen_core.recipes import demo


def test_a_run_keeps_the_recipe_and_the_sources_that_its_first_step_read(tmp_path: Path) -> None:
    path, sources = tmp_path / "recipe.json", tmp_path / "manifest.yaml"

    def write(name: str) -> None:
        path.write_text(to_json(replace(demo(), name=name)))
        entry = {"name": name, "format": "owner_jsonl", "paths": "rows.jsonl"}
        sources.write_text(yaml.safe_dump({"sources": [entry]}))

    write("first")
    resources = {
        "recipe": RecipeResource(name=str(path)),
        "manifest": ManifestResource(path=str(sources), home=str(tmp_path)),
    }
    seen = []

    @dg.asset
    def trained(recipe: RecipeResource, manifest: ManifestResource) -> None:
        seen.append((recipe.load().name, *manifest.load().names))
        write("second")  # somebody prepares the next training while this one is under way

    @dg.asset(deps=[trained])
    def evaluated(recipe: RecipeResource, manifest: ManifestResource) -> None:
        seen.append((recipe.load().name, *manifest.load().names))

    @dg.asset_check(asset=evaluated)
    def is_whole(recipe: RecipeResource, manifest: ManifestResource) -> dg.AssetCheckResult:
        seen.append((recipe.load().name, *manifest.load().names))
        return dg.AssetCheckResult(passed=True)

    run = dg.Definitions(assets=[trained, evaluated], asset_checks=[is_whole], resources=resources)
    job = run.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process().success
    assert seen == [("first", "first")] * 3
    seen.clear()
    assert job.execute_in_process().success
    assert seen == [("second", "second")] * 3
    for name in ("third", "fourth"):  # outside of a run nothing is kept
        write(name)
        assert resources["recipe"].load().name == name
        assert resources["manifest"].load().names == (name,)
