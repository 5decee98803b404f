"""Compiled layers: what a layer does element by element becomes one pass over memory instead of many.

transformers writes norms, rotary positions, activations and sums as a dozen kernels each, which read and
write the hidden states each time; at Qwen2-VL-2B's widths that takes about as long as the matrix products,
and launching so many keeps a fast GPU waiting. Here a layer is three steps: one compiled part in front of the
attention, the attention, which has kernels of its own (`model.attention`), and one compiled part behind it.
Layers keep their place, weights and names, so checkpointing, FSDP2 and saved weights are what they were.

For the way back a layer keeps what matrix products gave, and not what norms and activations made of it: that
is made once more, at the cost of a pass over memory. It is a third of the memory of a chunk, so chunks are
larger by as much, and there are fewer for the same pairs.
"""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vipolyqwen_core.model.attention import HEAD_MULTIPLE, attend
from vipolyqwen_core.processing.packing import Segments

COMPILED_FAMILY: Final = "qwen2_vl"
"""`model_type` of the backbones whose layers are known here."""
TEXT_LAYER: Final = "Qwen2VLDecoderLayer"
MOST_PROGRAMS: Final = 64
"""Programs that a compiled part may have: with gradients and without, for one row, for some and for many, for
rows that are views or none. torch allows 8 by itself, and a run would end at the first chunk that needs a
ninth."""

Positions: TypeAlias = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary positions: [1, T, d] in the language model, [P, d] in the vision tower."""


def compile_layers(model: nn.Module) -> None:
    """Compile the layers of both towers for any number of rows; a second time: nothing.

    The first chunks are slow, a minute or two in all. Values change by rounding only.

    Raises:
        ValueError: the layers are not those of Qwen2-VL, or attend within a sliding window
    """
    modules: list[Any] = [module for module in model.modules() if type(module).__name__ in FORWARDS]
    if not any(type(module).__name__ == TEXT_LAYER for module in modules):
        raise ValueError("compile_layers knows the layers of Qwen2-VL only: leave it false")
    for module in modules:
        if type(module).__name__ == TEXT_LAYER and module.self_attn.sliding_window is not None:
            raise ValueError("compile_layers: the backbone's sliding window is not supported")
        module.forward = MethodType(FORWARDS[type(module).__name__], module)


def _allow_programs() -> None:
    """In this thread: each has a limit of its own, and gradients of a GPU have a thread of their own.

    torch.compile has an argument for it from torch 2.13 on only.
    """
    limits = torch._dynamo.config
    if limits.recompile_limit < MOST_PROGRAMS:
        limits.recompile_limit = MOST_PROGRAMS


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward of a layer, with activation checkpointing where the model has it enabled.

    transformers does the same around the forward of the class, of which this one takes the place.
    """

    @wraps(forward)
    def run(layer: Any, *inputs: Tensor, **others: Any) -> Tensor:
        if not (layer.gradient_checkpointing and layer.training):
            return forward(layer, *inputs, **others)
        threads = torch.get_num_threads()

        def compute(*inputs: Tensor) -> Tensor:
            # gradients of a GPU have a thread of their own, and with other numbers all would be compiled anew
            torch.set_num_threads(threads)
            return forward(layer, *inputs, **others)

        result: Tensor = layer._gradient_checkpointing_func(compute, *inputs)
        return result

    return run


@_checkpointed
def _text_layer(
    layer: Any, hidden_states: Tensor, *, position_embeddings: Positions, segments: Segments, **_: Any
) -> Tensor:
    """A layer of the language model: [1, T, H] to [1, T, H]."""
    _allow_programs()
    rotations = (rotation[0] for rotation in position_embeddings)
    states = _before_text_attention(layer, hidden_states[0], *rotations)
    attended = attend(*states, segments, True, layer.self_attn.scaling)
    return _behind_text_attention(layer, hidden_states, attended)


@_checkpointed
def _vision_layer(
    layer: Any,
    hidden_states: Tensor,
    *,
    cu_seqlens: Tensor,
    position_embeddings: Positions,
    segments: Segments,
    **_: Any,
) -> Tensor:
    """A layer of the vision tower: [P, C] to [P, C]. `cu_seqlens` is what `segments` says better."""
    _allow_programs()
    states = _before_vision_attention(layer, hidden_states, *position_embeddings)
    attended = attend(*states, segments, False, layer.attn.scaling)
    return _behind_vision_attention(layer, hidden_states, attended)


@torch.compile(fullgraph=True, dynamic=True)
def _before_text_attention(
    layer: Any, hidden: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: [T, heads, d], fewer heads for keys and values."""
    attention = layer.self_attn

    def project(hidden: Tensor) -> tuple[Tensor, ...]:
        normed = _root_mean_square(layer.input_layernorm, hidden)
        return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)

    query, key, value = (
        states.unflatten(1, (-1, attention.head_dim)) for states in _recomputed(project, hidden)
    )
    return _rotated(query, cosine, sine), _rotated(key, cosine, sine), value


@torch.compile(fullgraph=True, dynamic=True)
def _behind_text_attention(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """[1, T, H]: a view of what has one dimension less would be a wrong place for hooks of FSDP2."""
    feed_forward = layer.mlp

    def widen(hidden: Tensor) -> tuple[Tensor, Tensor]:
        normed = _root_mean_square(layer.post_attention_layernorm, hidden)
        return feed_forward.gate_proj(normed), feed_forward.up_proj(normed)

    def narrow(gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = feed_forward.down_proj(feed_forward.act_fn(gate) * up)
        return result

    hidden = hidden + layer.self_attn.o_proj(attended.flatten(1))[None]
    # with three dimensions torch.compile would keep nothing of the products, and multiply once more
    narrowed: Tensor = _recomputed(narrow, *_recomputed(widen, hidden[0]))
    return hidden + narrowed[None]


@torch.compile(fullgraph=True, dynamic=True)
def _before_vision_attention(
    layer: Any, hidden: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: [P, heads, d], with zeros up to a size that kernels compute anyway."""
    attention = layer.attn
    projected = _recomputed(lambda hidden: attention.qkv(_centred(layer.norm1, hidden)), hidden)
    query, key, value = projected.unflatten(1, (3, attention.num_heads, -1)).unbind(1)
    query, key = (_rotated(part.float(), cosine.float(), sine.float()) for part in (query, key))
    fill = -attention.head_dim % HEAD_MULTIPLE if hidden.is_cuda else 0
    query, key, value = (F.pad(part.to(value.dtype), (0, fill)).contiguous() for part in (query, key, value))
    return query, key, value


@torch.compile(fullgraph=True, dynamic=True)
def _behind_vision_attention(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    feed_forward = layer.mlp
    hidden = hidden + layer.attn.proj(attended[:, :, : layer.attn.head_dim].flatten(1))
    wide = _recomputed(lambda hidden: feed_forward.fc1(_centred(layer.norm2, hidden)), hidden)
    narrowed: Tensor = _recomputed(lambda wide: feed_forward.fc2(feed_forward.act(wide)), wide)
    return hidden + narrowed


def _recomputed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """The function's result. For the way back its inputs are kept, and what follows from them is made again.

    A matrix product at the end is not done again: its value is not needed, or belongs to what is kept next.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: [T, heads, d], by [T, d]."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * cosine.unsqueeze(1) + turned * sine.unsqueeze(1)


# norms give the type that they are given: what follows is a product that would round to it anyway, and behind
# the last one pooling, where that adds about as much as the states were rounded by (1.7e-3 becomes 2.4e-3)


def _root_mean_square(norm: Any, hidden: Tensor) -> Tensor:
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    weighted: Tensor = norm.weight * wide.to(hidden.dtype)
    return weighted.to(hidden.dtype)


def _centred(norm: Any, hidden: Tensor) -> Tensor:
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(hidden.float(), weight.shape, weight, bias, norm.eps).to(hidden.dtype)


FORWARDS: Final[dict[str, Callable[..., Tensor]]] = {
    TEXT_LAYER: _text_layer,
    "Qwen2VLVisionBlock": _vision_layer,
    "Qwen2VLRMSNorm": torch.compile(_root_mean_square, fullgraph=True, dynamic=True),
    "LayerNorm": torch.compile(_centred, fullgraph=True, dynamic=True),
}
"""What takes the place of the forward of each class. A layer has its norms in it; these are the others."""
