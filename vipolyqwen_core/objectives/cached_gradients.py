"""The loss of a whole step and its gradient by vector, for back-propagation chunk by chunk (GradCache).

Reference:
    Gao et al. 2021, arXiv 2101.06983
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.negatives import gather
from vipolyqwen_core.objectives.pairs import PairVectors
from vipolyqwen_core.objectives.routing import Losses, compute_losses

BLOCK_ENTRIES = {True: 2**24, False: 2**16}
"""Similarities of a block on a GPU, where each block costs a hundred launches, and on a CPU, whose caches it
should fit: 64 MB and 256 KB in float32, some ten times over."""


def cached_gradients(
    pairs: PairVectors,
    settings: ObjectiveSettings,
    *,
    num_step_pairs: int,
    matryoshka_dims: Sequence[int] = (),
    task_weights: Mapping[Task, float] | None = None,
    block_entries: int | None = None,
) -> tuple[Losses, PairVectors]:
    """The losses of this rank's pairs of a step against those of all ranks, and the gradients of its pairs.

    A chunk is then embedded again, and `pairs.dot(their gradients)` is its surrogate loss. Anchors go in
    blocks of at most `block_entries` similarities (by default what the device computes well at once), so that
    memory grows with the vectors of the step and not with the square of their number; all ranks meet once
    before the blocks and once after them.

    Shapes:
        pairs: this rank's B pairs of the step with their M hard negatives; gradients of theirs are ignored
        returns: losses with a detached total; gradients of the sum of all ranks' totals, each in the place of
            what it is the gradient of
    """
    with torch.enable_grad():
        own = _leaves(pairs)
        gathered = gather(own)
        candidates = _leaves(gathered)
        num_candidates = candidates.num_pairs + candidates.keys.num_negatives
        block_entries = block_entries or BLOCK_ENTRIES[pairs.query.device.type == "cuda"]
        block_pairs = max(block_entries // max(num_candidates, 1), 1)
        # without pairs one empty block still gives zeros
        starts = range(0, max(own.num_pairs, 1), block_pairs)
        blocks = []
        for start in starts:
            anchors = own.slice(start, min(start + block_pairs, own.num_pairs))
            block = compute_losses(
                anchors,
                candidates,
                settings,
                num_step_pairs=num_step_pairs,
                matryoshka_dims=matryoshka_dims,
                task_weights=task_weights,
            )
            block.total.backward()
            blocks.append(replace(block, total=block.total.detach()))
        torch.autograd.backward(
            [gathered.query, gathered.target, gathered.negatives],
            [_gradient(vectors) for vectors in (candidates.query, candidates.target, candidates.negatives)],
        )
    losses = sum(blocks[1:], blocks[0])
    return losses, own.map(_gradient)


def _leaves(pairs: PairVectors) -> PairVectors:
    """The same pairs, cut off from what made them, ready to collect gradients."""
    return pairs.map(lambda given: given.detach().requires_grad_())


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad
