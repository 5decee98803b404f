"""Pooling: the hidden states of each segment become one vector, as a weighted mean over its tokens.

A pooling only says how much each token weighs; the weights of a segment sum to one and depend on nothing
outside it. All of this is float32. Several heads weigh slices of the hidden state on their own.
"""

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from vipolyqwen_core import config


class Pooling(Protocol):
    """Weighs the tokens of each segment."""

    def weights(self, hidden: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
        """How much each token weighs in its segment.

        Shapes:
            hidden: [T, H] float32; segment_ids: [T] ascending
            returns: [T, heads] float32; the rows of a segment sum to one
        """
        ...


def pool(hidden: Tensor, weights: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """The weighted mean of the hidden states of each segment, slice by slice where there are several heads.

    Shapes:
        hidden: [T, H]; weights: [T, heads], heads dividing H
        returns: [S, H]
    """
    weighted: Tensor = (hidden.unflatten(1, (weights.shape[1], -1)) * weights[:, :, None]).flatten(1)
    return weighted.new_zeros(num_segments, hidden.shape[1]).index_add(0, segment_ids, weighted)


def segment_softmax(scores: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Softmax over the rows of each segment.

    Shapes:
        scores: [T, heads]; segment_ids: [T]
        returns: [T, heads]
    """
    index = segment_ids[:, None].expand_as(scores)
    peaks = torch.full((num_segments, scores.shape[1]), -torch.inf, device=scores.device, dtype=scores.dtype)
    peaks = peaks.scatter_reduce(0, index, scores.detach(), "amax")
    powers = (scores - peaks.index_select(0, segment_ids)).exp()
    sums = torch.zeros_like(peaks).index_add(0, segment_ids, powers)
    # selected, not indexed: the gradient of an index is sorted before it is summed
    return powers / sums.index_select(0, segment_ids)


def concentration(weights: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """How far the weights of each segment are from even: 1 - entropy / log(tokens), the mean of the heads.

    0 where all tokens weigh the same, as one token alone does; 1 where one of several has all the weight.

    Shapes:
        weights: [T, heads], those of a segment summing to one; segment_ids: [T]
        returns: [S]
    """
    # no token has a logarithm of minus infinity, whose gradient would be none
    parts = -weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    entropies = weights.new_zeros(num_segments, weights.shape[1]).index_add(0, segment_ids, parts)
    counts = weights.new_zeros(num_segments).index_add(0, segment_ids, weights.new_ones(len(segment_ids)))
    uneven: Tensor = 1 - entropies.mean(1) / counts.clamp_min(2).log()
    return torch.where(counts > 1, uneven, 0.0)


class AttentionPooling(nn.Module):
    """Learned context vectors, one a head: a token weighs by the softmax of its dot product with them.

    One head is the pooling of the paper, scores h·v. Several heads have a slice of the hidden state each. The
    context begins as zero, so a new model begins as mean pooling: nothing random decides which tokens count.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"pooling_heads {num_heads} does not divide the hidden size {hidden_size}")
        self.context = nn.Parameter(torch.zeros(num_heads, hidden_size // num_heads))

    def weights(self, hidden: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
        context = self.context.float()
        scores: Tensor = (hidden.unflatten(1, context.shape) * context).sum(2)
        return segment_softmax(scores, segment_ids, num_segments)


class MeanPooling(nn.Module):
    """Every token weighs the same."""

    def weights(self, hidden: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
        # not `bincount`: it would wait for the device to know the largest id
        counts = hidden.new_zeros(num_segments).index_add(0, segment_ids, hidden.new_ones(len(segment_ids)))
        return (1.0 / counts)[segment_ids][:, None]


class LastPooling(nn.Module):
    """Only the last token counts: <|im_end|>, which has seen all others."""

    def weights(self, hidden: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
        following = torch.cat([segment_ids[1:], segment_ids.new_full((1,), num_segments)])
        return (segment_ids != following).to(hidden.dtype)[:, None]


POOLINGS: Final[dict[config.Pooling, Callable[[int, int], Pooling]]] = {
    config.Pooling.ATTENTION: lambda hidden_size, _: AttentionPooling(hidden_size, 1),
    config.Pooling.MULTI_HEAD_ATTENTION: AttentionPooling,
    config.Pooling.MEAN: lambda *_: MeanPooling(),
    config.Pooling.LAST: lambda *_: LastPooling(),
}
"""Each kind of pooling, made for a hidden size and a number of heads."""
