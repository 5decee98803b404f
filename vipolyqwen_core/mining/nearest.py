"""The nearest targets of many queries, exactly, by blocks: on a GPU where there is one.

A dense product needs no index: with 1,024 dimensions, 11 million queries and as many targets are 2.5e17
operations, minutes of a GPU. What an index would save in arithmetic it would lose in exactness, and in the
time to build it for one use.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
HalfVectors = NDArray[np.float16]

TARGETS_AT_ONCE: Final = 16_384
TILE_QUERIES: Final = 2_048
"""Queries that are multiplied with a block of targets: 128 MB of similarities."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Some sides: their vectors, and a key each.

    Shapes:
        vectors: [U, D] unit rows, may be memory-mapped
        rows: [n] their rows in `vectors`
        keys: [n]; a query and a target with the same key are no pair of strangers; 0: no key
    """

    vectors: HalfVectors
    rows: Ints
    keys: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Vectors [b, D] and keys [b] of some of them, on a device; half precision on a GPU only."""
        vectors = torch.from_numpy(self.vectors[self.rows[start:stop]]).to(device)
        keys = torch.from_numpy(self.keys[start:stop]).to(device)
        return (vectors if device.type == "cuda" else vectors.float()), keys


def nearest_below(
    queries: Sides, targets: Sides, limits: Floats, count: int, device: torch.device
) -> tuple[Floats, Ints]:
    """The nearest targets of each query whose similarity is below the query's limit, nearest first.

    The queries stay on the device while the targets pass by.

    Shapes:
        limits: [Q]
        returns: [Q, count] similarities, -inf where fewer targets are left; [Q, count] places in `targets`
    """
    vectors, keys = queries.block(0, len(queries), device)
    limit = torch.from_numpy(limits).to(device)
    best = torch.full((len(queries), count), -torch.inf, device=device)
    where = torch.zeros((len(queries), count), dtype=torch.int64, device=device)
    for first in range(0, len(targets), TARGETS_AT_ONCE):
        block, their_keys = targets.block(first, first + TARGETS_AT_ONCE, device)
        for tile in _tiles(len(queries)):
            similarity = _products(vectors[tile], block)
            related = (keys[tile, None] == their_keys) & (keys[tile, None] != 0)
            similarity.masked_fill_(related | (similarity >= limit[tile, None]), -torch.inf)
            best[tile], where[tile] = _merged(best[tile], where[tile], similarity, first, count)
    return best.cpu().numpy(), where.cpu().numpy()


def _tiles(num_queries: int) -> list[slice]:
    return [slice(first, first + TILE_QUERIES) for first in range(0, num_queries, TILE_QUERIES)]


def _products(queries: Tensor, targets: Tensor) -> Tensor:
    """[q, t] in float32, of half precision on a GPU too: rounded to it, near ones would tie."""
    if queries.is_cuda:
        return torch.mm(queries, targets.T, out_dtype=torch.float32)
    return queries @ targets.T


def _merged(best: Tensor, where: Tensor, similarity: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The best so far with those of another block of targets, which begins at `first`."""
    found, columns = similarity.topk(min(count, similarity.shape[1]))
    values, chosen = torch.cat([best, found], dim=1).topk(count)
    return values, torch.cat([where, columns + first], dim=1).gather(1, chosen)


def similarities(queries: Sides, targets: Sides) -> Floats:
    """Cosine of each query with the target in its place: [n]."""
    found = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), TARGETS_AT_ONCE):
        part = slice(start, start + TARGETS_AT_ONCE)
        query, target = (side.vectors[side.rows[part]].astype(np.float32) for side in (queries, targets))
        found[part] = np.einsum("nd,nd->n", query, target)
    return found
