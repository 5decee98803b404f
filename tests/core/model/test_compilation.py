"""Compiled layers compute what the plain ones compute, for any number of rows."""

import pytest
import torch
from PIL import Image

from tests.benchmarks.gpu.settings import restore_layers
from vipolyqwen_core.config import ModelSettings
from vipolyqwen_core.model import compilation
from vipolyqwen_core.model.attention import attend
from vipolyqwen_core.model.compilation import compile_layers
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import PackedBatch, pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor

LAYERS = ("Qwen2VLDecoderLayer", "Qwen2VLVisionBlock")


def vectors_and_gradients(model: ViPolyQwenModel, batch: PackedBatch) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    vectors = model(batch)
    (vectors * torch.arange(vectors.numel()).view_as(vectors).sin()).sum().backward()
    return [vectors.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_equal_plain_ones(tiny_backbone, tiny_processing, checkpointing, monkeypatch):
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    texts = [Item("Hà Nội là thủ đô của Việt Nam. " * n) for n in (1, 5, 2)]
    pictures = [Item("<image> gì đây?", (Image.new("RGB", size),)) for size in ((60, 90), (120, 64))]
    items = processor.encode_batch([*texts, *pictures])
    batches = [pack(items[-n:], processor.layout) for n in (3, 4, 5)]
    model = ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=32), tiny_processing)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    plain = [vectors_and_gradients(model, batch) for batch in batches]
    compile_layers(model)
    compile_layers(model)
    vectors_and_gradients(model, batches[0])
    with torch._dynamo.config.patch(error_on_recompile=True):  # another number of rows is no other program
        compiled = [vectors_and_gradients(model, batch) for batch in batches]
    for one, other in zip(plain, compiled, strict=True):
        for expected, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
    num_layers, runs = sum(type(module).__name__ in LAYERS for module in model.modules()), []
    monkeypatch.setattr(compilation, "attend", lambda *given: runs.append(1) or attend(*given))
    vectors_and_gradients(model, batches[0])
    assert len(runs) == num_layers * (1 + checkpointing)  # on the way back once more
    restore_layers(model)
    for found, expected in zip(vectors_and_gradients(model, batches[0]), plain[0], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_chunks_of_all_kinds_are_not_more_programs_than_torch_allows(tiny_backbone, tiny_processing):
    """One empty item, a few and thousands of rows, with gradients and without: a run has chunks of each."""
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    few, one, many = (
        pack(processor.encode_batch(items), processor.layout)
        for items in ([Item("Hà Nội"), Item("phở")], [Item()], [Item("Hà Nội " * n) for n in range(45)])
    )
    assert one.num_tokens == 1
    assert many.num_tokens > 4096
    model = ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=32), tiny_processing)
    compile_layers(model.train())
    torch._dynamo.reset()  # programs of other tests count too
    for batch in (few, one, many):
        with torch.no_grad():
            model(batch)
        vectors_and_gradients(model, batch)


@pytest.mark.slow
def test_compiled_layers_keep_the_products_of_their_widening(tiny_backbone, tiny_processing):
    """Else the way back multiplies once more: a twelfth of a step of the 2B model."""
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    batch = pack(processor.encode_batch([Item("Hà Nội là thủ đô của Việt Nam.")] * 3), processor.layout)
    model = ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=32), tiny_processing)
    compile_layers(model.train())
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, list)
    with keep:
        model(batch)
    shape = model.config.backbone.get_text_config()
    assert kept.count((batch.num_tokens, shape.intermediate_size)) == 2 * shape.num_hidden_layers


def test_layers_of_another_backbone_are_refused_instead_of_left_as_they_are():
    with pytest.raises(ValueError, match="compile_layers knows the layers of Qwen2-VL only"):
        compile_layers(torch.nn.Linear(2, 2))


def test_a_sliding_window_is_refused(tiny_model_dir):
    model = ViPolyQwenModel.from_pretrained(tiny_model_dir)
    model.backbone.language_model.layers[-1].self_attn.sliding_window = 8
    with pytest.raises(ValueError, match="the backbone's sliding window is not supported"):
        compile_layers(model)
