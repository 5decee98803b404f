"""Operations counted from shapes are those that torch counts as they run."""

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.training.flops import FORWARD_AND_BACKWARD, FlopCounter, peak_flops

PICTURE = Image.new("RGB", (84, 56), "red")
ITEMS = {
    "text": [Item("a red circle")] * 3,
    "pictures": [Item("<image> what is it?", (PICTURE,))] * 2,
    "mixed": [Item("a red circle")] * 3 + [Item("<image> what is it?", (PICTURE,))] * 2,
}
"""Lengths of a kind are equal: attention on a CPU fills up unequal ones, and that is no useful operation."""


@pytest.mark.parametrize("kind", ITEMS)
def test_the_counter_agrees_with_torch(kind, tiny_model, tiny_backbone, tiny_processing):
    packed = pack(ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing).encode_batch(ITEMS[kind]))
    counter = FlopCounter.of(tiny_model)
    tiny_model.train()
    # torch knows the operations of attention here only where it is written out as products
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        vectors = tiny_model(packed)
        (vectors * torch.ones_like(vectors)).sum().backward()
    tiny_model.zero_grad(set_to_none=True)
    tiny_model.eval()

    # written out, a causal attention computes the half that kernels skip
    skipped = 0.5 * counter.token_attention * sum(n * n for n in packed.segments.lengths)
    expected = counter.count(packed) + FORWARD_AND_BACKWARD * 4 * skipped
    # patches need no gradient: one product that the rule of three counts and nobody does
    if packed.pictures is not None:
        kernel = tiny_model.backbone.visual.patch_embed.proj.weight
        expected -= 2 * packed.num_patches * kernel.numel() // 2
    assert counted.get_total_flops() == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_the_rate_of_a_card_is_its_own(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
