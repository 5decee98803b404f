"""Floating point operations of a step, counted from shapes, and the machine's peak, where it is known.

Counted are the matrix products of forward and backward, attention included; what is computed a second time
(activation checkpointing, cached gradients) is not.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import PackedBatch

PEAK_FLOPS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 rate by a part of the device's name, the makers' figures."""
OTHER_DEVICES = ("MIG", "Laptop")
"""A word of a device's name that has another rate than the card which its name begins with."""

FORWARD_AND_BACKWARD = 3
"""A backward pass costs two forward passes."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 rate of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if not set(OTHER_DEVICES).isdisjoint(name.split()):
        return None
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class FlopCounter:
    """Counts what a packed batch costs a model."""

    token_weights: int
    """Weights of the language model that multiply each token."""
    patch_weights: int
    """Weights of the vision tower that multiply each patch."""
    merged_weights: int
    """Weights of the merger, which multiply each visual token."""
    item_weights: int
    """Weights of the projection, which multiply each item."""
    token_attention: int
    """Layers times attention width of the language model."""
    patch_attention: int
    """Layers times attention width of the vision tower; layers that look at windows cost next to nothing."""
    merged_patches: int
    """Patches of a visual token."""

    @classmethod
    def of(cls, model: ViPolyQwenModel) -> "FlopCounter":
        """The counter of a model, before it is wrapped."""
        text = model.backbone.language_model.config
        visual = model.backbone.visual
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            token_weights=_linear_weights(model.backbone.language_model.layers),
            # of the kernel of two frames only the sum of both multiplies (`model.patch_embedding`)
            patch_weights=_linear_weights(visual.blocks)
            + visual.patch_embed.proj.weight.numel() // visual.config.temporal_patch_size,
            merged_weights=_linear_weights(visual.merger)
            + _linear_weights(getattr(visual, "deepstack_merger_list", nn.ModuleList())),
            item_weights=_linear_weights(model.projection),
            token_attention=text.num_hidden_layers * text.num_attention_heads * width,
            patch_attention=sum(not block.attn.windowed for block in visual.blocks)
            * visual.patch_embed.proj.out_channels,
            merged_patches=visual.config.spatial_merge_size**2,
        )

    def count(self, packed: PackedBatch) -> float:
        """Operations of forward and backward: two a weight and row, four a pair of rows and width."""
        causal = 0.5
        attention = causal * self.token_attention * sum(n * n for n in packed.segments.lengths)
        lengths = [] if packed.pictures is None else packed.pictures.segments.lengths
        attention += self.patch_attention * sum(n * n for n in lengths)
        products = self.products(packed.num_tokens, sum(lengths), packed.num_items)
        return products + FORWARD_AND_BACKWARD * 4.0 * attention

    def products(self, num_tokens: float, num_patches: float, num_items: float) -> float:
        """The same without attention, from numbers alone."""
        rows = self.token_weights * num_tokens + self.patch_weights * num_patches
        rows += self.merged_weights * num_patches / self.merged_patches + self.item_weights * num_items
        return FORWARD_AND_BACKWARD * 2.0 * rows


def _linear_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
