"""Compiled layers: what a layer does element by element becomes one pass over memory instead of many.

transformers writes norms, rotary positions and activations as a dozen kernels each, which read and write the
hidden states each time. At Qwen2-VL-2B's widths that takes about as long as the matrix products, by count of
bytes. Compiled are the parts between the attentions, each whole: attention itself has its kernels
(`model.attention`), and a layer around it cannot be traced without breaks, since segments are Python values.
So checkpointing, FSDP2 and saved weights are what they were.
"""

from types import MethodType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_vl import modeling_qwen2_vl

ROTARY_FUNCTIONS: Final = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")
"""The attention modules look them up by these names: compiled for all models of the process."""
NORM: Final = "Qwen2VLRMSNorm"
FEED_FORWARD: Final = ("Qwen2MLP", "VisionMlp")


def compile_layers(model: nn.Module) -> None:
    """Compile norms, feed-forward parts and rotary positions for any number of rows; a second time: nothing.

    The first chunks are slow, about a minute in all. Values change by rounding only.

    Raises:
        ValueError: the layers are not those of Qwen2-VL: none would be compiled
    """
    if not any(type(module).__name__ == NORM for module in model.modules()):
        raise ValueError("training.compile_layers knows the layers of Qwen2-VL only: leave it false")
    for module in model.modules():
        name = type(module).__name__
        if name == NORM:
            module.forward = MethodType(_root_mean_square, module)
        elif name == "LayerNorm":
            module.forward = MethodType(_layer_norm, module)
        elif name in FEED_FORWARD and module._compiled_call_impl is None:
            module.compile(fullgraph=True, dynamic=True)
    for name in ROTARY_FUNCTIONS:
        function = getattr(modeling_qwen2_vl, name)
        if not hasattr(function, "_torchdynamo_orig_callable"):
            setattr(modeling_qwen2_vl, name, torch.compile(function, fullgraph=True, dynamic=True))


def _root_mean_square(module: Any, hidden: Tensor) -> Tensor:
    return _compiled_root_mean_square(hidden, module.weight, module.variance_epsilon)


def _layer_norm(module: Any, hidden: Tensor) -> Tensor:
    return _compiled_layer_norm(hidden, module.weight, module.bias, module.eps)


# both give the type that they are given: what follows is a product that would round to it anyway


@torch.compile(fullgraph=True, dynamic=True)
def _compiled_root_mean_square(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (weight * wide.to(hidden.dtype)).to(hidden.dtype)


@torch.compile(fullgraph=True, dynamic=True)
def _compiled_layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(hidden.float(), weight.shape, weight.float(), bias.float(), epsilon).to(hidden.dtype)
