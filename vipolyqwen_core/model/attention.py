"""Attention by segment, behind one seam: rows of a packed sequence see only rows of their own segment.

    CUDA, half precision    the fastest kernel for segments that is installed: FlashAttention-4 on Hopper,
                            FlashAttention-2, or what torch brings, which is FlashAttention-2 too
    everything else         scaled dot products over buckets of segments of about the same length

No T x T mask exists anywhere. transformers calls `segment_attention` under the name `SEGMENTS`; the model
hands it the `Segments` of the language model or of the vision tower as a keyword.
"""

import inspect
import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vipolyqwen_core.processing.packing import Segments

logger = logging.getLogger(__name__)

SEGMENTS: Final = "vipolyqwen_segments"
HALF: Final = (torch.float16, torch.bfloat16)
FULL_WINDOW: Final = (-1, -1)
CAUSAL_WINDOW: Final = (-1, 0)
ASKS_FOR_GQA: Final = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""torch 2.11 hands fewer heads of keys and values to the kernel unasked; later ones want to be told."""
HEAD_MULTIPLE: Final = 32
"""Kernels on CUDA compute heads as if their size were a multiple of this. FlashAttention-4 has to be given
such a size: with another (seen with 80, 4.0.0b36, H100) the gradients of its queries are wrong."""
HOPPER: Final = 9
"""Major compute capability for which FlashAttention-4 is used; it was tried on no other."""

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Segments, bool, float], Tensor]
"""Computes `attend` on a CUDA device."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> Tensor:
    """Attention of each row to the rows of its segment, or to those up to itself.

    Shapes:
        query: [T, heads, d]; key and value: [T, fewer or as many heads, d]
        returns: [T, heads, d]
    """
    if query.is_cuda and query.dtype in HALF:
        kernel = fastest_kernel(torch.cuda.get_device_capability(query.device)[0])
        return kernel(query, key, value, segments, causal, scale)
    return _attend_in_buckets(query, key, value, segments, causal, scale)


@cache
def fastest_kernel(architecture: int) -> Kernel:
    """The kernel for a major compute capability, of those that are installed; the choice is logged once."""
    kernel: Kernel = _torch_kernel
    for candidate, wanted in ((_flash_4, architecture == HOPPER), (_flash_2, True)):
        if wanted:
            try:
                kernel = candidate()
                break
            except ImportError:  # extras `hopper` and `gpu`; torch's own kernel gives the same values
                continue
    logger.info("attention on CUDA: %s", kernel.__doc__)
    return kernel


def _flash_4() -> Kernel:
    from flash_attn.cute import flash_attn_varlen_func  # seconds to import, so only where there is a GPU

    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # at each kernel that it compiles

    def flash_attention_4(
        query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
    ) -> Tensor:
        """FlashAttention-4"""
        bounds, longest, size = segments.cu_seqlens, segments.max_length, query.shape[2]
        if size % HEAD_MULTIPLE:
            query, key, value = (F.pad(rows, (0, -size % HEAD_MULTIPLE)) for rows in (query, key, value))
        attended: Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=bounds,
            cu_seqlens_k=bounds,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=causal,
            return_lse=True,  # else it would compile another kernel for where no gradients are wanted
        )[0]
        return attended[:, :, :size]

    return flash_attention_4


def _flash_2() -> Kernel:
    from flash_attn import flash_attn_varlen_func

    def flash_attention_2(
        query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
    ) -> Tensor:
        """FlashAttention-2"""
        bounds, longest = segments.cu_seqlens, segments.max_length
        attended: Tensor = flash_attn_varlen_func(
            query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, causal=causal
        )
        return attended

    return flash_attention_2


def _torch_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> Tensor:
    """torch's kernel for segments"""
    bounds, longest = segments.cu_seqlens, segments.max_length
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if ASKS_FOR_GQA else {}
    attended: Tensor = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=CAUSAL_WINDOW if causal else FULL_WINDOW,
        **grouped,
    )  # type: ignore[assignment]  # a tuple comes only with return_aux
    return attended


def _attend_in_buckets(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> Tensor:
    """One dense attention a bucket. Causal rows never look at what fills a bucket behind them."""
    if segments.equal_length:
        shape = (len(segments.lengths), segments.max_length)
        batch = [rows.unflatten(0, shape) for rows in (query, key, value)]
        return _dense(batch, None, causal, scale).flatten(0, 1)
    buckets = segments.buckets
    sizes = [count * length for count, length in buckets.shapes]
    # split, not sliced: a slice's backward fills a gradient of the whole sequence, for every bucket again
    dense = zip(
        *(_ToBuckets.apply(rows, buckets.rows, buckets.places).split(sizes) for rows in (query, key, value)),
        strict=True,
    )
    attended = []
    for parts, shape, mask in zip(dense, buckets.shapes, buckets.masks, strict=True):
        batch = [rows.unflatten(0, shape) for rows in parts]
        attended.append(_dense(batch, None if causal else mask, causal, scale).flatten(0, 1))
    packed: Tensor = _FromBuckets.apply(torch.cat(attended), buckets.rows, buckets.places, buckets.fill)
    return packed


class _ToBuckets(torch.autograd.Function):
    """Packed rows to their places in the buckets. Both ways select rows; fill gets no gradient."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return packed.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _FromBuckets(torch.autograd.Function):
    """Rows of the buckets back to the packed sequence; what was computed for fill is dropped."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, rows: Tensor, places: Tensor, fill: Tensor) -> Tensor:
        ctx.save_for_backward(rows, fill)
        return dense.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, fill = ctx.saved_tensors
        return gradient.index_select(0, rows).index_fill_(0, fill, 0), None, None, None


def _dense(states: list[Tensor], mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Attention of a dense batch of queries, keys and values, [n, l, heads, d] each."""
    query, key, value = (rows.transpose(1, 2) for rows in states)
    attended = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    segments: Segments,
    windows: Segments | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` in the form that transformers' attention modules call.

    A layer that is marked `windowed` (`mark_windowed_layers`) attends within `windows` instead.

    Shapes:
        query, key, value: [1, heads, T, d]
        returns: [1, T, heads, d]
    Raises:
        ValueError: the backbone uses a sliding window
    """
    if sliding_window is not None:
        raise ValueError(f"the backbone's sliding window of {sliding_window} tokens is not supported")
    assert attention_mask is None, "a packed sequence has no mask"
    assert dropout == 0.0, "attention dropout is not supported in packed sequences"
    assert isinstance(module.is_causal, bool)
    if getattr(module, "windowed", False):
        assert windows is not None, "a windowed layer without its windows"
        segments = windows
    # rotary positions may have widened query and key beyond what autocast wants
    query, key, value = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    # the vision tower's values are a part of a product that holds queries and keys too: it need not be kept
    value = value.contiguous()
    return attend(query, key, value, segments, module.is_causal, scaling)[None], None


# transformers builds no mask for a name that has an attention function but no mask function
ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
