"""A saved model has its settings: who loads it with others is refused, and with another precision warned."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

import vipolyqwen_core.model  # noqa: F401  # registers the classes
from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.processor import PROCESSOR_FILE, ViPolyQwenProcessor
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.serving.model_card import ModelFacts
from vipolyqwen_core.serving.model_directory import complete_model_directory


@pytest.fixture(scope="module")
def half_dir(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model whose backbone is saved in bfloat16 while it is float32 in memory, as training saves it."""
    directory = tmp_path_factory.mktemp("half")
    settings = ModelSettings(embedding_dim=64, pooling=Pooling.MEAN)
    model = ViPolyQwenModel.from_backbone(tiny_backbone, settings, tiny_processing)
    weights = {
        name: tensor.bfloat16() if name.startswith("backbone.") else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(directory, state_dict=weights)
    ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "last"}, "pooling 'last': the model was trained with 'mean'"),
        ({"embedding_dim": 32}, "embedding_dim 32: the model was trained with 64"),
        ({"pooling_heads": 2}, "pooling_heads 2: the model was trained with 8"),
        ({"matryoshka_dims": [32]}, r"matryoshka_dims \[32\]: the model was trained with \[\]"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean .* the model was trained with"),
        ({"image_std": (0.5, 0.5, 0.5)}, "image_std .* the model was trained with"),
        ({"contract": {}}, "contract {}: the model was trained with"),
    ],
)
def test_another_setting_of_the_model_is_refused(
    half_dir: Path, changed: dict[str, Any], message: str
) -> None:
    for load in (AutoModel.from_pretrained, ViPolyQwenModel.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(half_dir, **changed)


def test_a_configuration_may_be_given_as_its_place(half_dir: Path, tiny_model_dir: Path) -> None:
    for place in (half_dir, str(half_dir / "config.json")):
        assert ViPolyQwenModel.from_pretrained(half_dir, config=place).config.pooling == "mean"
        with pytest.raises(ValueError, match="pooling 'mean': the model was trained with 'attention'"):
            ViPolyQwenModel.from_pretrained(tiny_model_dir, config=place)


def test_a_precision_in_the_saved_configuration_that_is_none_is_named(half_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(half_dir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"precision": "fp16"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"precision of config\.json 'fp16': expected float32, bfloat16"):
        ViPolyQwenModel.from_pretrained(copy)


def test_the_same_settings_may_be_said_again(half_dir: Path) -> None:
    assert AutoModel.from_pretrained(half_dir, pooling="mean").config.pooling == "mean"
    assert AutoProcessor.from_pretrained(half_dir, max_tokens=256).settings.max_tokens == 256


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_pixels": 99}, "max_pixels 99: the model was trained with 28224"),
        ({"size": {"longest_edge": 99}}, "size {'longest_edge': 99}: the model was trained with {"),
        ({"patch_size": 16}, "patch_size 16: the model was trained with 14"),
        ({"image_mean": (0.5, 0.5, 0.5)}, "image_mean .* the model was trained with"),
        ({"do_resize": False}, "do_resize False: the model was trained with True"),
    ],
)
def test_another_setting_of_the_processor_is_refused(
    half_dir: Path, changed: dict[str, Any], message: str
) -> None:
    for load in (AutoProcessor.from_pretrained, ViPolyQwenProcessor.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(half_dir, **changed)


def test_model_and_processor_of_one_revision_are_loaded(
    half_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--name"
    settings = json.loads((half_dir / PROCESSOR_FILE).read_text(encoding="utf-8"))
    for name, commit, max_tokens in (("main", "a" * 40, 128), ("old", "b" * 40, 256)):
        snapshot = repository / "snapshots" / commit
        shutil.copytree(half_dir, snapshot / "inner")
        shutil.copytree(half_dir, snapshot, dirs_exist_ok=True)
        settings["vipolyqwen"]["max_tokens"] = max_tokens
        (snapshot / PROCESSOR_FILE).write_text(json.dumps(settings), encoding="utf-8")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    where = {"cache_dir": str(tmp_path), "local_files_only": True}
    for revision, max_tokens in (("main", 128), ("old", 256)):
        processor = AutoProcessor.from_pretrained("owner/name", revision=revision, **where)
        assert processor.settings.max_tokens == max_tokens
    inner = AutoProcessor.from_pretrained("owner/name", revision="main", subfolder="inner", **where)
    assert inner.settings.max_tokens == 256


def test_sentence_transformers_refuses_them_too(half_dir: Path) -> None:
    complete_model_directory(half_dir, ModelFacts("run", "demo", "tiny", "v1"))
    for arguments in ({"processor_kwargs": {"max_tokens": 9}}, {"config_kwargs": {"pooling": "last"}}):
        with pytest.raises(ValueError, match="the model was trained with"):
            SentenceTransformer(str(half_dir), trust_remote_code=True, device="cpu", **arguments)


def test_a_model_is_loaded_in_the_precision_it_was_saved_in(
    half_dir: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert json.loads((half_dir / "config.json").read_text(encoding="utf-8"))["precision"] == "bfloat16"
    with caplog.at_level(logging.WARNING, "vipolyqwen_core"):
        for load in (AutoModel.from_pretrained, ViPolyQwenModel.from_pretrained):
            assert load(half_dir, dtype="auto").backbone.dtype == torch.bfloat16
            model = load(half_dir)
            assert model.backbone.dtype == torch.bfloat16
            assert model.projection.weight.dtype == torch.float32
        assert ViPolyQwenEmbedder.from_pretrained(half_dir).model.backbone.dtype == torch.bfloat16
        assert ViPolyQwenEmbedder.from_pretrained(tiny_model_dir).model.backbone.dtype == torch.float32
    assert not caplog.records


def test_another_precision_is_done_with_a_warning(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir, dtype="bfloat16")
    assert embedder.model.backbone.dtype == torch.bfloat16
    older = AutoModel.from_pretrained(tiny_model_dir, torch_dtype=torch.float16)  # spelled as before
    assert older.backbone.dtype == torch.float16
    assert "is loaded in bfloat16 but was saved in float32" in caplog.text
    vector = embedder.encode("một câu")
    assert vector @ ViPolyQwenEmbedder.from_pretrained(tiny_model_dir).encode("một câu") > 0.99
    embedder.model.save_pretrained(tmp_path)
    assert ViPolyQwenModel.from_pretrained(tmp_path).backbone.dtype == torch.bfloat16


def test_a_type_that_is_none_is_named(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'float8_e4m3fn': expected float32"):
        AutoModel.from_pretrained(tiny_model_dir, dtype="float8_e4m3fn")
    with pytest.raises(ValueError, match="dtype 'bf17': expected float32"):
        ViPolyQwenEmbedder.from_pretrained(tiny_model_dir, dtype="bf17")
