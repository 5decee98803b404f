"""Compiled layers compute what the plain ones compute, for any number of rows."""

import pytest
import torch

from vipolyqwen_core.config import ModelSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import PackedBatch
from vipolyqwen_core.training.compilation import compile_layers, restore_layers
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest


def vectors_and_gradients(model: ViPolyQwenModel, batch: PackedBatch) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    vectors = model(batch)
    (vectors * torch.arange(vectors.numel()).view_as(vectors).sin()).sum().backward()
    return [vectors.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_equal_plain_ones(training_set, tiny_backbone, tiny_processing, checkpointing):
    loader = ChunkLoader(training_set, tiny_backbone, tiny_processing, 0.0, 0)
    batches = [loader[ChunkRequest(0, 0, torch.arange(n).numpy(), False)].packed for n in (5, 10, 15)]
    model = ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=32), tiny_processing)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    plain = [vectors_and_gradients(model, batch) for batch in batches]
    compile_layers(model)
    compile_layers(model)
    vectors_and_gradients(model, batches[0])
    with torch._dynamo.config.patch(error_on_recompile=True):  # another number of rows is no other program
        compiled = [vectors_and_gradients(model, batch) for batch in batches]
    for one, other in zip(plain, compiled, strict=True):
        for expected, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
    restore_layers(model)
    for found, expected in zip(vectors_and_gradients(model, batches[0]), plain[0], strict=True):
        assert torch.equal(found, expected)


def test_layers_of_another_backbone_are_refused_instead_of_left_as_they_are():
    with pytest.raises(ValueError, match="compile_layers knows the layers of Qwen2-VL only"):
        compile_layers(torch.nn.Linear(2, 2))
