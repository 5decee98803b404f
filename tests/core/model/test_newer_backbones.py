"""Qwen2.5-VL and Qwen3-VL go through the seam of Qwen2-VL, and give the vectors of the plain classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLTextModel,
)

from tests.core.model.plain import ITEMS, build, picture, plain_vectors, vectors
from vipolyqwen_core.config import Pooling, ProcessingSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.model.vision import add_visual
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import EncodedItem, Item, ViPolyQwenProcessor
from vipolyqwen_core.training.flops import FlopCounter

LARGE = (  # pictures of several windows, whose last ones are cut
    Item("<image> lớn", (picture(196, 140, 11),)),
    Item("<image><image>", (picture(84, 300, 12), picture(28, 28, 13)), prefix=Task.OCR),
)


def qwen2_5_vl(plain: Qwen2VLConfig) -> Any:
    """Three layers of windows around one that sees the whole picture."""
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_heads": 3,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [2],
        "initializer_range": 0.06,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text_config(plain), vision_config=vision, **ids_of(plain))
    )


def qwen3_vl(plain: Qwen2VLConfig) -> Any:
    """Features of two layers of the tower go into the language model; 5 x 5 learned positions."""
    text = text_config(plain) | {"head_dim": 32}
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_heads": 3,
        "out_hidden_size": 128,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.06,
    }
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **ids_of(plain))
    )


def text_config(plain: Qwen2VLConfig) -> dict[str, Any]:
    """The language model of the tiny backbone."""
    content: dict[str, Any] = plain.text_config.to_dict()
    content.pop("model_type")
    return content


def ids_of(plain: Qwen2VLConfig) -> dict[str, Any]:
    return {
        "image_token_id": plain.image_token_id,
        "video_token_id": plain.video_token_id,
        "vision_start_token_id": plain.vision_start_token_id,
        "vision_end_token_id": plain.vision_end_token_id,
        "tie_word_embeddings": True,
    }


PICTURES = {
    "qwen2_5_vl": {},
    "qwen3_vl": {"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
}
"""What its preprocessor_config.json says otherwise than that of Qwen2-VL."""


@pytest.fixture(scope="module", params=[qwen2_5_vl, qwen3_vl], ids=lambda make: make.__name__)
def backbone(
    request: pytest.FixtureRequest, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp(request.param.__name__)
    for path in tiny_backbone.glob("*token*"):
        (directory / path.name).write_bytes(path.read_bytes())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        request.param(Qwen2VLConfig.from_pretrained(tiny_backbone)).save_pretrained(directory)
    content = json.loads((tiny_backbone / "preprocessor_config.json").read_text(encoding="utf-8"))
    content |= PICTURES[request.param.__name__]
    (directory / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def processor(backbone: Path, tiny_processing: ProcessingSettings) -> ViPolyQwenProcessor:
    return ViPolyQwenProcessor.from_backbone(backbone, tiny_processing)


@pytest.fixture(scope="module")
def encoded(processor: ViPolyQwenProcessor) -> list[EncodedItem]:
    return processor.encode_batch([*ITEMS, *LARGE])


@pytest.fixture(scope="module")
def model(backbone: Path, tiny_processing: ProcessingSettings) -> ViPolyQwenModel:
    return build(backbone, tiny_processing, Pooling.ATTENTION)


def test_packed_vectors_are_those_of_the_plain_class_one_by_one(
    model: ViPolyQwenModel, backbone: Path, processor: ViPolyQwenProcessor, encoded: list[EncodedItem]
) -> None:
    packed = vectors(model, encoded, processor)
    alone = plain_vectors(model, backbone, processor, encoded)
    assert (packed * alone).sum(1).min() >= 0.99999
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)
    assert (packed @ packed.T - torch.eye(len(encoded))).max() < 0.999, (
        "the items must differ to tell anything"
    )


def test_a_saved_model_gives_the_same_vectors(
    model: ViPolyQwenModel, processor: ViPolyQwenProcessor, encoded: list[EncodedItem], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        vectors(loaded, encoded, processor), vectors(model, encoded, processor), atol=0, rtol=0
    )


def test_gradients_reach_every_part(
    model: ViPolyQwenModel, processor: ViPolyQwenProcessor, encoded: list[EncodedItem]
) -> None:
    model.zero_grad()
    (model(pack(encoded, processor.layout))[:, :8]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_dummy_picture_changes_no_vector_and_touches_the_vision_tower(
    model: ViPolyQwenModel, processor: ViPolyQwenProcessor, encoded: list[EncodedItem]
) -> None:
    model.zero_grad()
    texts = [encoded[1], encoded[6]]
    embedded = model(pack(texts, processor.layout, dummy_picture=True))
    torch.testing.assert_close(embedded, vectors(model, texts, processor), atol=1e-6, rtol=0)
    embedded.sum().backward()
    for name, parameter in model.backbone.visual.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_operations_are_counted_from_what_is_there(
    model: ViPolyQwenModel, processor: ViPolyQwenProcessor, encoded: list[EncodedItem]
) -> None:
    counter = FlopCounter.of(model)
    windowed = model.config.backbone.model_type == "qwen2_5_vl"
    assert counter.patch_attention == 96 * (1 if windowed else 4)
    assert counter.count(pack(encoded, processor.layout)) > counter.count(pack(encoded[:1])) > 0


def test_layers_that_are_sharded_are_those_of_the_backbone(model: ViPolyQwenModel) -> None:
    names = {type(block).__name__ for block in model.backbone.language_model.layers}
    names |= {type(block).__name__ for block in model.backbone.visual.blocks}
    assert set(model._no_split_modules) == names


def test_adding_to_visual_tokens_does_not_wait_for_the_device_and_adds_what_transformers_does() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, visual = (torch.randn(*shape, generator=generator) for shape in ((1, 7, 4), (3, 4)))
    places = torch.tensor([1, 2, 5])
    mask = torch.zeros(1, 7, dtype=torch.bool).index_fill(1, places, True)
    for dtype in (torch.float32, torch.bfloat16):
        theirs = Qwen3VLTextModel._deepstack_process(None, hidden.to(dtype), mask, visual)
        assert torch.equal(add_visual(hidden.to(dtype), places, visual), theirs)
    with FakeTensorMode(allow_non_fake_inputs=True):  # refuses what depends on values
        assert add_visual(hidden, places, visual).shape == hidden.shape
