"""hard_negatives: what a person sees of the stage, with a model that finds some and without."""

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from assets.checks import model_checks
from assets.hard_negatives import hard_negatives
from assets.registry import Version
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from tests.core.small_training_set import some_pairs, write_training_set
from vipolyqwen_core.config import ExportSettings, MiningSettings, Recipe, to_json
from vipolyqwen_core.contract import CHALLENGER, CHAMPION, Split
from vipolyqwen_core.mining.mine import mine
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    place = Workspace(tmp_path)
    write_training_set(place.training_set, (replace(pair, split=Split.TRAIN) for pair in some_pairs()[:40]))
    return place


def materialize(place: Workspace, recipe: Recipe, manifest: str | None = None) -> dict[str, dg.MetadataValue]:
    """Metadata of the asset, after its check has passed."""
    path = place.home / "recipe.json"
    path.write_text(to_json(recipe))
    result = dg.materialize(
        [hard_negatives, *(check for check in model_checks() if "hard_negatives" in str(check.check_keys))],
        resources={
            "workspace": WorkspaceResource(home=str(place.home)),
            "recipe": RecipeResource(name=str(path)),
            "manifest": ManifestResource(path=manifest, home=str(place.home)),
            "mlflow": MlflowResource(home=str(place.home)),
        },
    )
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    (event,) = result.asset_materializations_for_node("hard_negatives")
    return dict(event.metadata)


def test_examples_and_counts_are_shown(workspace: Workspace, tiny_model_dir: Path) -> None:
    export(workspace.training_set, tiny_model_dir, "7", workspace, ExportSettings())
    mining = MiningSettings(negatives_per_pair=1, max_similarity_share=1.0)
    shown = materialize(workspace, replace(demo(), mining=mining))
    assert "by model version 7" in shown["summary"].value
    lines = shown["examples"].value.splitlines()
    assert lines[0] == "| task | query | its target | hard negative | similarity |"
    assert len(lines) > 4
    for line in lines[2:]:
        task, _, target, wrong, similarity, _ = (cell.strip("| ") for cell in line.split(" |"))
        assert target != wrong, line
        assert -1 <= float(similarity) < 1, line
        assert task in {"instr", "text_pair", "ocr", "vqa_single", "vqa_multi"}


def test_the_model_of_the_table_comes_from_the_registry_where_it_is_gone(
    workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(number: int, target: Path) -> None:
        assert number == 7
        shutil.copytree(tiny_model_dir, target)

    monkeypatch.setattr("vipolyqwen_core.serving.registration.download_model_directory", download)
    monkeypatch.setattr(MlflowResource, "connect", lambda _: None)
    model = shutil.copytree(tiny_model_dir, workspace.models / "v7")
    export(workspace.training_set, model, "7", workspace, ExportSettings())
    shutil.rmtree(model)
    shown = materialize(workspace, replace(demo(), mining=MiningSettings(negatives_per_pair=1)))
    assert "by model version 7" in shown["summary"].value


@pytest.mark.parametrize(
    ("lost", "alias"), [("exports", CHAMPION), ("exports/lancedb", CHAMPION), ("exports", CHALLENGER)]
)
def test_a_table_that_is_gone_is_exported_under_the_model_in_use(
    workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, lost: str, alias: str
) -> None:
    """Training would go without, and the new model be silently worse."""
    model = shutil.copytree(tiny_model_dir, workspace.models / "v7")
    export(workspace.training_set, model, "7", workspace, ExportSettings())
    shutil.rmtree(workspace.home / lost)
    tags = {"vipolyqwen.model_digest": model_digest(model)}
    version = Version(7, (alias,), tags)
    monkeypatch.setattr("assets.registry.champion", lambda _: version if alias == CHAMPION else None)
    monkeypatch.setattr("assets.registry.version_with_alias", lambda *_: version)
    shown = materialize(workspace, replace(demo(), mining=MiningSettings(negatives_per_pair=1)))
    assert "by model version 7" in shown["summary"].value


def test_a_table_that_is_gone_is_not_done_without_where_no_model_is_registered(
    workspace: Workspace, tiny_model_dir: Path
) -> None:
    export(workspace.training_set, tiny_model_dir, "7", workspace, ExportSettings())
    shutil.rmtree(workspace.lancedb)
    with pytest.raises(ValueError, match=r"the exported table, .*, is gone"):
        materialize(workspace, replace(demo(), mining=MiningSettings(negatives_per_pair=1)))


def test_a_table_of_nothing_gives_way_once_a_version_is_registered(
    workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vipolyqwen mine`, which knows no registry, has written it on a machine that was restored."""
    recipe = replace(demo(), mining=MiningSettings(negatives_per_pair=1))
    assert mine(workspace, recipe).details["teacher"] == ""
    model = shutil.copytree(tiny_model_dir, workspace.models / "v7")
    tags = {"vipolyqwen.model_digest": model_digest(model)}
    monkeypatch.setattr("assets.hard_negatives.version_in_use", lambda _: Version(7, ("champion",), tags))
    assert "by model version 7" in materialize(workspace, recipe)["summary"].value


def test_a_first_registration_that_was_killed_is_no_reason_to_refuse(
    workspace: Workspace, tiny_model_dir: Path
) -> None:
    recipe = replace(demo(), mining=MiningSettings(negatives_per_pair=1))
    mine(workspace, recipe)
    shutil.copytree(tiny_model_dir, workspace.models / "v1")
    assert "nothing was exported yet" in materialize(workspace, recipe)["summary"].value


def test_a_first_model_trains_without(workspace: Workspace) -> None:
    shown = materialize(workspace, replace(demo(), mining=MiningSettings(negatives_per_pair=1)))
    assert "nothing was exported yet" in shown["summary"].value
    assert shown["examples"].value == "nothing was mined"


def test_a_recipe_that_mines_none_leaves_no_trace(workspace: Workspace) -> None:
    assert "the recipe mines none" in materialize(workspace, demo())["summary"].value
    assert not workspace.hard_negatives.exists()


def test_a_manifest_that_breaks_meanwhile_fails_no_check_that_does_not_look_at_it(
    workspace: Workspace, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("sources: [")
    assert "the recipe mines none" in materialize(workspace, demo(), str(manifest))["summary"].value
