"""Who is a negative of whom: known false negatives leave, and candidates come from all ranks.

The collectives of a loss happen here, once and for all tasks together, before anything is routed by task: no
collective depends on which tasks, scores or hard negatives a rank has.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vipolyqwen_core.objectives.pairs import NO_KEY, PairKeys, PairVectors, join_keys

KEYS_OF_PAIR = ("task", "score", "query_hash", "target_hash", "positive_hash")
KEYS_OF_NEGATIVE = ("negative_hash", "negative_query_hash", "negative_positive_hash", "negative_pair")


class Excluded(NamedTuple):
    """Which candidates are no negatives of which anchor; true: the candidate leaves its denominator."""

    targets: Tensor
    """[B, C + M] bool: for each query the targets of all pairs, then the hard negatives."""
    queries: Tensor
    """[B, C] bool: for each target the queries of all pairs."""


def excluded(anchors: PairKeys, candidates: PairKeys, *, cross_task: bool = False) -> Excluded:
    """Who is no negative of whom.

    A target leaves when it is the anchor's own target, the target of the same query or of the same
    `positive_key`, or the query itself; a query leaves by the mirror of these rules. The anchor's own pair
    leaves by the first one. A hard negative is a target like the others: one that was mined is that of
    another pair, and brings that pair's keys; one that was declared belongs to none.

    Shapes:
        anchors: B pairs; candidates: C pairs and M hard negatives
    """
    targets = torch.cat([candidates.target_hash, candidates.negative_hash])
    queries = torch.cat([candidates.query_hash, candidates.negative_query_hash])
    positives = torch.cat([candidates.positive_hash, candidates.negative_positive_hash])
    pairs = _equal(anchors.target_hash, targets)
    pairs |= _equal(anchors.query_hash, queries)
    pairs |= _equal(anchors.positive_hash, positives) & (anchors.positive_hash != NO_KEY)[:, None]
    if not cross_task:
        tasks = torch.cat([candidates.task, candidates.task[candidates.negative_pair]])
        pairs |= anchors.task[:, None] != tasks
    return Excluded(
        targets=pairs | _equal(anchors.query_hash, targets),
        queries=pairs[:, : candidates.num_pairs] | _equal(anchors.target_hash, candidates.query_hash),
    )


def _equal(left: Tensor, right: Tensor) -> Tensor:
    return left[:, None] == right


def gather(pairs: PairVectors, sizes: Sequence[tuple[int, int]] = ()) -> PairVectors:
    """The pairs of all ranks in rank order, with gradients that reach the rank they belong to.

    Ranks may bring different numbers of pairs and of hard negatives, also none. Backward sums the gradients
    of all ranks, so the gradient of a rank's vectors is that of the sum of all ranks' losses. Every rank must
    call it, and must run backward through it, equally often.

    `sizes` are the pairs and hard negatives of each rank. Where they are not given, ranks exchange them, and
    the host waits until the device has done all it was told to do.

    One process, or none initialised: the pairs themselves.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return pairs
    rank = dist.get_rank()
    sizes = sizes or _gather_sizes(pairs.keys)
    own = (pairs.keys.num_pairs, pairs.keys.num_negatives)
    assert sizes[rank] == own, (sizes, rank, own)
    keys = [
        _unpack(packed, *size) for packed, size in zip(_gather_packed(pairs.keys, sizes), sizes, strict=True)
    ]
    counts = [2 * num_pairs + num_negatives for num_pairs, num_negatives in sizes]
    vectors = _GatherRows.apply(pairs.stacked(), counts, rank)
    parts = [
        part.split([num_pairs, num_pairs, num_negatives])
        for part, (num_pairs, num_negatives) in zip(vectors.split(counts), sizes, strict=True)
    ]
    queries, targets, negatives = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
    return PairVectors(queries, targets, negatives, join_keys(keys))


def _gather_sizes(keys: PairKeys) -> list[tuple[int, int]]:
    """Pairs and hard negatives of each rank."""
    own = torch.tensor([keys.num_pairs, keys.num_negatives], device=keys.task.device)
    return [(pairs, negatives) for pairs, negatives in _gather_blocks(own[None]).tolist()]


def _gather_packed(keys: PairKeys, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The keys of each rank as one row of int64; scores travel as their bits."""
    packed = torch.cat([vars(keys)[name].view(torch.int64) for name in (*KEYS_OF_PAIR, *KEYS_OF_NEGATIVE)])
    longest = max(_packed_length(*size) for size in sizes)
    padded = torch.nn.functional.pad(packed, (0, longest - len(packed)))
    rows = _gather_blocks(padded[None])
    return [row[: _packed_length(*size)] for row, size in zip(rows, sizes, strict=True)]


def _packed_length(num_pairs: int, num_negatives: int) -> int:
    return len(KEYS_OF_PAIR) * num_pairs + len(KEYS_OF_NEGATIVE) * num_negatives


def _unpack(packed: Tensor, num_pairs: int, num_negatives: int) -> PairKeys:
    lengths = [num_pairs] * len(KEYS_OF_PAIR) + [num_negatives] * len(KEYS_OF_NEGATIVE)
    columns = dict(zip((*KEYS_OF_PAIR, *KEYS_OF_NEGATIVE), packed.split(lengths), strict=True))
    return PairKeys(**{**columns, "score": columns["score"].view(torch.float64)})


def _gather_blocks(block: Tensor) -> Tensor:
    """[n, ...] of each rank -> [ranks * n, ...]; all ranks bring the same shape."""
    gathered = block.new_empty((dist.get_world_size() * block.shape[0], *block.shape[1:]))
    dist.all_gather_into_tensor(gathered, block.contiguous())
    return gathered


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward sums over ranks what each of them owes to the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.first, ctx.count = sum(counts[:rank]), counts[rank]
        longest = max(counts)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, longest - len(rows)))
        blocks = _gather_blocks(padded).split(longest)
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count], None, None
