"""Mining: the exact search for the nearest wrong targets, beside sentence-transformers' exact search of the
same vectors (which knows no limits and no keys) and the bare product of the matrices, on the same threads.

Pairs a second fall as their number grows, since every query meets every target: the rate of products is what
stays, and what the time for other sizes follows from.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vipolyqwen_core.mining.mine import SPARE
from vipolyqwen_core.mining.nearest import Sides, nearest_below, similarities

DIM = 1024
COUNT = 1 + SPARE
SIZES = (10_000, 30_000)


def sides(num_pairs: int) -> tuple[Sides, Sides]:
    """Queries beside their targets, in clusters; half precision, as on disk."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(100, DIM)).astype(np.float32)
    targets = centres[random.integers(0, 100, num_pairs)] + random.normal(size=(num_pairs, DIM))
    queries = targets + 0.5 * random.normal(size=targets.shape)
    rows, none = np.arange(num_pairs), np.zeros(num_pairs, dtype=np.int64)
    unit = [
        (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float16) for part in (queries, targets)
    ]
    return Sides(unit[0], rows, none), Sides(unit[1], rows, none)


def seconds_of(work: Callable[..., Any], *arguments: Any) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def product(left: torch.Tensor, right: torch.Tensor) -> None:
    """All similarities, block by block, and nothing else."""
    for part in left.split(1024):
        part @ right.T


def run() -> list[str]:
    """Seconds of each, and how they compare."""
    from sentence_transformers.util import semantic_search

    header = (
        "pairs",
        "seconds",
        "GFLOP/s",
        "of the bare product's rate",
        "sentence-transformers, s",
        "ratio",
    )
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    for num_pairs in SIZES:
        queries, targets = sides(num_pairs)
        limits = 0.95 * similarities(queries, targets)
        left, right = (torch.from_numpy(side.vectors).float() for side in (queries, targets))
        ours = seconds_of(nearest_below, queries, targets, limits, COUNT, torch.device("cpu"))
        bare = seconds_of(product, left, right)
        peer = seconds_of(semantic_search, left, right, 100, 500_000, COUNT)
        rate = 2 * num_pairs * num_pairs * DIM / ours / 1e9
        figures = f"{ours:.1f} | {rate:.0f} | {bare / ours:.2f} | {peer:.1f} | {peer / ours:.2f}"
        lines.append(f"| {num_pairs:,} | {figures} |")
    return lines
