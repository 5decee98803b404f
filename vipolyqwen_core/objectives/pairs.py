"""Pairs as the losses see them: unit vectors, and the keys that say which vectors belong to which pair.

The keys are known before the model runs: a loader worker builds them from rows of the training set. The
vectors come from the model. Neither knows the model, the rank or the chunk.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from vipolyqwen_core.contract import Task

TASKS: tuple[Task, ...] = tuple(Task)
"""`PairKeys.task` is a position in this tuple."""

NO_KEY = 0
"""`positive_hash` of a pair that declares none, as in the tagged table. No content has this hash."""


@dataclass(frozen=True)
class PairKeys:
    """What the losses know of B pairs and of their M explicit hard negatives.

    A hash is the 64-bit identity of a side's normalised content, without prefix; equal hashes are equal
    content. The table's uint64 is carried as int64 with the same bits: it is only ever compared.
    """

    task: Tensor
    """[B] int64, position in `TASKS`."""
    score: Tensor
    """[B] float64, NaN where the pair has no score."""
    query_hash: Tensor
    """[B] int64."""
    target_hash: Tensor
    """[B] int64."""
    positive_hash: Tensor
    """[B] int64, hash of `positive_key`; `NO_KEY` where there is none."""
    negative_hash: Tensor
    """[M] int64."""
    negative_query_hash: Tensor
    """[M] int64, query of the pair that the negative is the target of; `NO_KEY` where it is of none."""
    negative_positive_hash: Tensor
    """[M] int64, `positive_hash` of that pair."""
    negative_pair: Tensor
    """[M] int64, the pair in [0, B) that the negative belongs to; ascending."""

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            number = self.num_negatives if name.startswith("negative_") else self.num_pairs
            assert len(column) == number, (name, len(column), number)

    @property
    def num_pairs(self) -> int:
        """B."""
        return self.task.shape[0]

    @property
    def num_negatives(self) -> int:
        """M."""
        return self.negative_hash.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairKeys":
        """The same keys on another device."""
        return PairKeys(
            **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in vars(self).items()}
        )

    def pin_memory(self) -> "PairKeys":
        """The same keys in page-locked memory."""
        return PairKeys(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})


def pair_keys(
    tasks: Sequence[Task | str],
    query_hashes: Sequence[int],
    target_hashes: Sequence[int],
    *,
    scores: Sequence[float | None] | None = None,
    positive_hashes: Sequence[int] | None = None,
    negative_hashes: Sequence[Sequence[int]] | None = None,
    negative_query_hashes: Sequence[Sequence[int]] | None = None,
    negative_positive_hashes: Sequence[Sequence[int]] | None = None,
) -> PairKeys:
    """Keys of pairs as they stand in the tagged table: unsigned hashes, a score or None.

    Shapes:
        each sequence has one entry a pair; those of negatives have a sequence a pair, of one hash a negative
    Raises:
        ValueError: a task is none
    """
    num_pairs = len(tasks)
    scores = [None] * num_pairs if scores is None else scores
    positive_hashes = [NO_KEY] * num_pairs if positive_hashes is None else positive_hashes
    negative_hashes = [()] * num_pairs if negative_hashes is None else negative_hashes
    unknown = [[NO_KEY] * len(of_pair) for of_pair in negative_hashes]
    negative_query_hashes = unknown if negative_query_hashes is None else negative_query_hashes
    negative_positive_hashes = unknown if negative_positive_hashes is None else negative_positive_hashes
    assert len(negative_hashes) == num_pairs, (len(negative_hashes), num_pairs)
    of_negatives = (negative_hashes, negative_query_hashes, negative_positive_hashes)
    negative, negative_query, negative_positive = ([*chain(*hashes)] for hashes in of_negatives)
    return PairKeys(
        task=torch.tensor([TASKS.index(Task(task)) for task in tasks], dtype=torch.int64),
        score=torch.tensor([math.nan if score is None else score for score in scores], dtype=torch.float64),
        query_hash=_signed(query_hashes),
        target_hash=_signed(target_hashes),
        positive_hash=_signed(positive_hashes),
        negative_hash=_signed(negative),
        negative_query_hash=_signed(negative_query),
        negative_positive_hash=_signed(negative_positive),
        negative_pair=torch.tensor(
            [pair for pair, of_pair in enumerate(negative_hashes) for _ in of_pair], dtype=torch.int64
        ),
    )


def _signed(hashes: Sequence[int]) -> Tensor:
    """Unsigned 64-bit numbers as int64 of the same bits. Signed ones pass unchanged."""
    return torch.tensor([(value + 2**63) % 2**64 - 2**63 for value in hashes], dtype=torch.int64)


@dataclass(frozen=True)
class PairVectors:
    """Unit vectors of B pairs and of their M explicit hard negatives, with the keys of both."""

    query: Tensor
    """[B, D] unit rows."""
    target: Tensor
    """[B, D] unit rows."""
    negatives: Tensor
    """[M, D] unit rows; M may be 0."""
    keys: PairKeys
    """Keys of the same pairs, in the same order, on the same device."""
    concentration: Tensor | None = None
    """[B] how far the pooling of a pair's sides is from even, their mean; None: the model was not asked.
    Candidates need none."""

    def __post_init__(self) -> None:
        pairs, negatives = self.keys.num_pairs, self.keys.num_negatives
        assert self.query.shape == self.target.shape, (self.query.shape, self.target.shape)
        assert self.query.shape[0] == pairs, (self.query.shape, pairs)
        assert self.negatives.shape == (negatives, self.query.shape[1]), (self.negatives.shape, negatives)
        assert self.concentration is None or self.concentration.shape == (pairs,), self.concentration.shape

    @property
    def num_pairs(self) -> int:
        """B."""
        return self.keys.num_pairs

    def stacked(self) -> Tensor:
        """[2B + M, D]: queries, then targets, then hard negatives; `split_vectors` undoes it."""
        return torch.cat([self.query, self.target, self.negatives])

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairVectors":
        """The same pairs, each tensor that the model gave replaced by a function of it."""
        query, target, negatives = map(function, (self.query, self.target, self.negatives))
        uneven = None if self.concentration is None else function(self.concentration)
        return PairVectors(query, target, negatives, self.keys, uneven)

    def dot(self, gradient: "PairVectors") -> Tensor:
        """[] a loss whose gradients are these: the sum over all numbers of the model of both."""
        loss = (self.stacked() * gradient.stacked()).sum()
        if self.concentration is None or gradient.concentration is None:
            return loss
        return loss + (self.concentration * gradient.concentration).sum()

    def slice(self, start: int, stop: int) -> "PairVectors":
        """Pairs [start, stop) with the hard negatives that are theirs.

        For a part the host waits until the device knows how many these are; the whole is there already.
        """
        if (start, stop) == (0, self.num_pairs):
            return self
        owners = self.keys.negative_pair
        return _taken(self, slice(start, stop), (owners >= start) & (owners < stop), owners - start)

    def thinned(self, number: int) -> "PairVectors":
        """At most so many of the pairs, at even distances, with the hard negatives that are theirs."""
        number = min(number, self.num_pairs)
        places = torch.arange(number, device=self.query.device) * self.num_pairs // max(number, 1)
        new_places = places.new_full((self.num_pairs,), -1)
        new_places[places] = torch.arange(number, device=places.device)
        owners = new_places[self.keys.negative_pair]
        return _taken(self, places, owners >= 0, owners)


def _taken(vectors: PairVectors, pairs: slice | Tensor, theirs: Tensor, owners: Tensor) -> PairVectors:
    """Some pairs, and of the hard negatives those that are `theirs`; `owners` are new places of pairs."""
    keys = {
        name: column[theirs if name.startswith("negative_") else pairs]
        for name, column in vars(replace(vectors.keys, negative_pair=owners)).items()
    }
    uneven = None if vectors.concentration is None else vectors.concentration[pairs]
    return PairVectors(
        vectors.query[pairs], vectors.target[pairs], vectors.negatives[theirs], PairKeys(**keys), uneven
    )


def split_vectors(vectors: Tensor, keys: PairKeys, concentration: Tensor | None = None) -> PairVectors:
    """Pairs out of one tensor of vectors: queries, then targets, then hard negatives.

    Shapes:
        vectors: [2B + M, D]; concentration: [2B + M], of which those of hard negatives count for nothing
    """
    pairs, negatives = keys.num_pairs, keys.num_negatives
    assert vectors.shape[0] == 2 * pairs + negatives, (vectors.shape, pairs, negatives)
    query, target, hard = vectors.split([pairs, pairs, negatives])
    uneven = None if concentration is None else (concentration[:pairs] + concentration[pairs : 2 * pairs]) / 2
    return PairVectors(query, target, hard, keys, uneven)


def join_keys(parts: Sequence[PairKeys]) -> PairKeys:
    """The keys of several groups of pairs (chunks, ranks) as those of one group, in order."""
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + part.num_pairs)
    shifted = [
        replace(part, negative_pair=part.negative_pair + offset)
        for part, offset in zip(parts, offsets, strict=False)
    ]
    return PairKeys(**{name: torch.cat([vars(part)[name] for part in shifted]) for name in vars(parts[0])})


def join_pairs(parts: Sequence[PairVectors]) -> PairVectors:
    """Several groups of pairs as one, in order; gradients flow back into the parts."""
    uneven = [part.concentration for part in parts if part.concentration is not None]
    return PairVectors(
        torch.cat([part.query for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat([part.negatives for part in parts]),
        join_keys([part.keys for part in parts]),
        torch.cat(uneven) if len(uneven) == len(parts) else None,
    )


def part_pairs(pairs: PairVectors, keys: Sequence[PairKeys]) -> Iterator[PairVectors]:
    """The groups that `join_pairs` joined; `keys` are those of each."""
    num_pairs, num_negatives = [each.num_pairs for each in keys], [each.num_negatives for each in keys]
    queries, targets = pairs.query.split(num_pairs), pairs.target.split(num_pairs)
    negatives = pairs.negatives.split(num_negatives)
    uneven = pairs.concentration.split(num_pairs) if pairs.concentration is not None else [None] * len(keys)
    for group in zip(queries, targets, negatives, keys, uneven, strict=True):
        yield PairVectors(*group)
