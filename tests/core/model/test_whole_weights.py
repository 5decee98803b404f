"""A model or a backbone that is not whole is refused: transformers would fill it with random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from vipolyqwen_core.config import ModelSettings, ProcessingSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

WEIGHTS = "model.safetensors"
Weights = dict[str, torch.Tensor]


def copy_of(model: Path, place: Path) -> Path:
    return Path(shutil.copytree(model, place / "model"))


def change(model: Path, how: Callable[[Weights], object]) -> None:
    weights = load_file(model / WEIGHTS)
    how(weights)
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})


def cut(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda weights: weights.pop("projection.weight"), "projection.weight is missing$"),
        (
            lambda weights: weights.update({"projection.bias": weights["projection.bias"][:-1].clone()}),
            r"projection.bias is \[63\] in place of \[64\]$",
        ),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights) if "layers.0" in name],
            r"layers\.0\.\S+ is missing, \S+ is missing, \S+ is missing and \d+ more$",
        ),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros(2)}),
            "lm_head.weight has no place in the model$",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(how, said, tiny_model_dir, tmp_path):
    model = copy_of(tiny_model_dir, tmp_path)
    change(model, how)
    for load in (ViPolyQwenEmbedder.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"{model}: its weights are not those .*{said}"):
            load(model)


@pytest.mark.parametrize(
    ("old", "new", "surplus"),
    [
        ('"pooling": "attention"', '"pooling": "mean"', r"pooling\.context"),
        ('"depth": 3', '"depth": 2', r"backbone\.visual\.blocks\.2\.\S+"),
    ],
)
def test_a_configuration_that_leaves_out_what_was_trained_is_refused(
    old, new, surplus, tiny_model_dir, tmp_path
):
    model = copy_of(tiny_model_dir, tmp_path)
    text = (model / "config.json").read_text(encoding="utf-8")
    assert old in text
    (model / "config.json").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{model}: its weights are not .*: {surplus} has no place"):
        ViPolyQwenEmbedder.from_pretrained(model)


@pytest.mark.parametrize(
    "file", [WEIGHTS, "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_file_that_was_cut_is_named(file, tiny_model_dir, tmp_path):
    model = copy_of(tiny_model_dir, tmp_path)
    cut(model / file, 100)
    with pytest.raises(ValueError, match=f"{model}.* damaged .*; copy the model anew"):
        ViPolyQwenEmbedder.from_pretrained(model)


def test_shards_take_the_place_of_one_file(tiny_model_dir, tmp_path):
    place = copy_of(tiny_model_dir, tmp_path)
    model = AutoModel.from_pretrained(place)
    for max_shard_size in ("1MB", "1GB", "1MB"):
        with torch.no_grad():
            model.projection.bias += 1
        model.save_pretrained(place, max_shard_size=max_shard_size)
        assert torch.equal(AutoModel.from_pretrained(place).projection.bias, model.projection.bias)


def test_an_adapter_lies_beside_the_weights_that_it_adapts(tiny_model_dir, tmp_path, monkeypatch):
    """Without peft: transformers then writes the adapter's files alone."""

    def write_adapter(model, directory, *_, **__):
        (Path(directory) / "adapter_model.safetensors").touch()

    place = copy_of(tiny_model_dir, tmp_path)
    model = AutoModel.from_pretrained(place)
    before = {path.name for path in place.iterdir()}
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write_adapter)
    model._hf_peft_config_loaded = True
    for directory in (place, tmp_path):
        model.save_pretrained(directory)
        assert (directory / "adapter_model.safetensors").is_file()
    assert before < {path.name for path in place.iterdir()}


def test_a_variant_lies_beside_the_weights_that_are_there(tiny_model_dir, tmp_path):
    place = copy_of(tiny_model_dir, tmp_path)
    model = AutoModel.from_pretrained(place)
    with torch.no_grad():
        model.projection.bias += 1
    model.save_pretrained(place, variant="other")
    assert torch.equal(
        AutoModel.from_pretrained(place, variant="other").projection.bias, model.projection.bias
    )
    assert not torch.equal(AutoModel.from_pretrained(place).projection.bias, model.projection.bias)


@pytest.mark.parametrize("max_shard_size", ["1GB", "1MB"])
def test_weights_are_as_readable_as_their_configuration(tiny_model_dir, tmp_path, max_shard_size):
    AutoModel.from_pretrained(tiny_model_dir).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    modes = {path.name: oct(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_an_index_of_shards_that_was_cut_is_named(tiny_model_dir, tmp_path):
    model = copy_of(tiny_model_dir, tmp_path)
    AutoModel.from_pretrained(model).save_pretrained(model, max_shard_size="1MB")
    cut(model / "model.safetensors.index.json", 100)
    with pytest.raises(ValueError, match=f"{model}.* damaged .*; copy the model anew"):
        ViPolyQwenEmbedder.from_pretrained(model)


def test_a_backbone_that_lacks_a_weight_does_not_train(tiny_backbone, tmp_path):
    backbone = copy_of(tiny_backbone, tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    change(backbone, lambda weights: weights.pop(next(key for key in weights if key.endswith(name[6:]))))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight is missing$"):
        ViPolyQwenModel.from_backbone(backbone, ModelSettings(), ProcessingSettings())


def test_pickled_weights_are_never_opened(tiny_model_dir, tmp_path):
    model = copy_of(tiny_model_dir, tmp_path)
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    with pytest.raises(OSError, match="safetensors"):
        ViPolyQwenEmbedder.from_pretrained(model)


def test_the_head_of_a_backbone_is_left_out(tiny_backbone, tmp_path):
    backbone = copy_of(tiny_backbone, tmp_path)
    change(backbone, lambda weights: weights.update({"lm_head.weight": torch.zeros(2, 2)}))
    model = ViPolyQwenModel.from_backbone(backbone, ModelSettings(), ProcessingSettings())
    assert not any("lm_head" in name for name in model.state_dict())


def test_what_was_loaded_can_be_asked_for(tiny_model_dir):
    model, found = AutoModel.from_pretrained(tiny_model_dir, output_loading_info=True)
    assert isinstance(model, ViPolyQwenModel)
    assert not found["missing_keys"]
