"""Names of backbones become places."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vipolyqwen_core.config import ExportSettings, ModelSettings, Pooling, Recipe, TrainingSettings
from vipolyqwen_core.contract import BACKBONE_FILES
from vipolyqwen_core.model.backbone import check_backbone, resolve_backbone
from vipolyqwen_core.workspace import Workspace


def test_tiny_is_made_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first = Path(resolve_backbone("tiny", workspace))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert {path.name for path in first.iterdir()} == set(BACKBONE_FILES)
    assert resolve_backbone("tiny", workspace) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in workspace.backbones.iterdir()] == [first.name]


def test_a_directory_or_a_hub_id_stays_what_it_is(tmp_path: Path, tiny_backbone: Path) -> None:
    workspace = Workspace(tmp_path)
    assert resolve_backbone(str(tiny_backbone), workspace) == tiny_backbone
    assert resolve_backbone("Qwen/Qwen2-VL-2B-Instruct", workspace) == "Qwen/Qwen2-VL-2B-Instruct"


def test_a_relative_directory_becomes_absolute(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "project"
    here.mkdir()
    (tmp_path / "qwen").symlink_to(tiny_backbone)
    monkeypatch.chdir(here)
    found = Path(resolve_backbone("../qwen", Workspace(tmp_path)))
    assert found.is_absolute()
    assert found.samefile(tiny_backbone)
    assert found.name == "qwen"  # which the identity of a run goes by


@pytest.mark.parametrize("name", ["smol", "./missing/folder", "/no/such/dir", "a/b/c"])
def test_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="neither 'tiny', nor a directory, nor a hub id"):
        resolve_backbone(name, Workspace(tmp_path))


def test_a_backbone_that_lacks_something_is_refused_by_a_look(tmp_path: Path, tiny_backbone: Path) -> None:
    copy, workspace = tmp_path / "copy", Workspace(tmp_path)
    shutil.copytree(tiny_backbone, copy)
    recipe = Recipe(name="own", backbone=str(copy))
    compiling = (
        replace(recipe, export=ExportSettings(compile_layers=True)),
        replace(recipe, training=TrainingSettings(compile_layers=True)),
    )
    for each in (recipe, *compiling):
        check_backbone(each, workspace)
    weights = copy / "model.safetensors"
    weights.rename(tmp_path / weights.name)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"copy has no weights: no \*.safetensors lies there"):
            check_backbone(recipe, workspace)
        (copy / "adapter_model.safetensors").touch()
    (tmp_path / weights.name).rename(weights)
    config = copy / "config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"model_type": "qwen3_vl"}))
    check_backbone(recipe, workspace)
    for each in compiling:
        with pytest.raises(ValueError, match="is a 'qwen3_vl', whose layers `compile_layers` does not know"):
            check_backbone(each, workspace)
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    text = {key: value for key, value in known["text_config"].items() if key != "layer_types"}
    config.write_text(json.dumps(known | {"text_config": text | sliding}))
    with pytest.raises(ValueError, match="copy: its sliding window is not supported"):
        check_backbone(recipe, workspace)
    config.write_text(json.dumps(known | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    with pytest.raises(ValueError, match=r"copy is quantised \(awq\), and cannot be trained: take the orig"):
        check_backbone(recipe, workspace)
    config.write_text(json.dumps(known | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="copy is a 'llama'; expected one of qwen2_vl"):
        check_backbone(recipe, workspace)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json does not exist"):
        check_backbone(recipe, workspace)
    (copy / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no image_processor, and preprocessor_config\.json does not"):
        check_backbone(recipe, workspace)
    config.unlink()
    with pytest.raises(ValueError, match=r"copy is no model directory: it has no config\.json"):
        check_backbone(recipe, workspace)


def test_heads_of_the_pooling_that_do_not_divide_the_hidden_size_are_refused_by_a_look(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    eight, seven = (
        Recipe(
            name="own",
            backbone=str(tiny_backbone),
            model=ModelSettings(pooling=Pooling.MULTI_HEAD_ATTENTION, pooling_heads=heads),
        )
        for heads in (8, 7)
    )
    check_backbone(eight, Workspace(tmp_path))
    with pytest.raises(ValueError, match="pooling_heads 7 does not divide the hidden size"):
        check_backbone(seven, Workspace(tmp_path))
