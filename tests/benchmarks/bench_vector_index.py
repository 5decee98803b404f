"""The vector index of an export beside the graph that LanceDB offers: what it costs, and what a search finds.

Vectors are synthetic, in 2,000 clusters that overlap, and queries lie beside some of them. Recall is the
share of the ten nearest rows, by exact cosines, that a search finds; with a filter that leaves one row in
fifty, of the ten nearest of these. Searches ask as `serving.search` does.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfHnswSq
from lancedb.table import Table

from vipolyqwen_core.serving.export import _vector_index
from vipolyqwen_core.serving.search import OVERSAMPLING, nearest

SIZES = ((60_000, 1024), (300_000, 256))
"""Rows and dimensions."""
LATENT, CLUSTERS, QUERIES, TOP = 96, 2_000, 200, 10
FILTER = "language = 'zh'"
BLOCK = 20_000


class Space:
    """Points of a latent space and their unit vectors."""

    def __init__(self, dim: int) -> None:
        random = np.random.default_rng(0)
        self.out = random.normal(size=(LATENT, dim)).astype(np.float32) / 10
        self.centres = random.normal(size=(CLUSTERS, LATENT)).astype(np.float32)

    def points(self, count: int) -> np.ndarray:
        random = np.random.default_rng(1)
        spread = 0.8 * random.normal(size=(count, LATENT)).astype(np.float32)
        return self.centres[random.integers(0, CLUSTERS, count)] + spread

    def vectors(self, points: np.ndarray, seed: int) -> np.ndarray:
        noise = 0.3 * np.random.default_rng(seed).normal(size=(len(points), self.out.shape[1]))
        vectors = points @ self.out + noise.astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batches(vectors: np.ndarray, languages: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of the table."""
    for start in range(0, len(vectors), BLOCK):
        part = slice(start, start + BLOCK)
        embeddings = pa.FixedSizeListArray.from_arrays(vectors[part].ravel(), vectors.shape[1])
        numbers = pa.array(np.arange(len(vectors))[part])
        yield pa.record_batch({"row": numbers, "language": languages[part], "embedding": embeddings})


def found(table: Table, query: np.ndarray, where: str | None) -> set[int]:
    """Rows that a search finds."""
    asked = nearest(table, query, TOP * OVERSAMPLING, is_filtered=bool(where))
    if where:
        asked = asked.where(where, prefilter=True)
    rows = asked.select(["row", "_distance"]).to_arrow()["row"].to_pylist()
    return set(rows[:TOP])


def judge(table: Table, queries: np.ndarray, nearest: np.ndarray, where: str | None) -> str:
    """Recall and the median time of a search."""
    hits, times = 0, []
    for query, right in zip(queries, nearest, strict=True):
        started = time.perf_counter()
        rows = found(table, query, where)
        times.append(time.perf_counter() - started)
        hits += len(rows & set(right.tolist()))
    return f"{hits / nearest.size:.3f} | {1000 * np.median(times):.0f}"


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = os.times()
    return used.user + used.system


def compare(rows: int, dim: int) -> Iterator[str]:
    """A line for each index over so many vectors."""
    space = Space(dim)
    points = space.points(rows)
    starts = range(0, rows, BLOCK)
    vectors = np.concatenate([space.vectors(points[start : start + BLOCK], 2 + start) for start in starts])
    languages = np.where(np.arange(rows) % 50 == 0, "zh", "vi")
    beside = np.random.default_rng(0).choice(rows, QUERIES, replace=False)
    moved = 0.5 * np.random.default_rng(1).normal(size=(QUERIES, LATENT)).astype(np.float32)
    queries = space.vectors(points[beside] + moved, 1)
    cosines = queries @ vectors.T
    nearest = np.argsort(-cosines, axis=1)[:, :TOP]
    cosines[:, languages != "zh"] = -np.inf
    nearest_left = np.argsort(-cosines, axis=1)[:, :TOP]
    indexes: dict[str, Any] = {"ours": _vector_index(dim), "graph": IvfHnswSq(distance_type="cosine")}
    with tempfile.TemporaryDirectory() as folder:
        first = next(batches(vectors, languages))
        reader = pa.RecordBatchReader.from_batches(first.schema, batches(vectors, languages))
        table = lancedb.connect(folder).create_table("rows", reader)
        for name, config in indexes.items():
            before = cpu_seconds()
            table.create_index("embedding", config=config, replace=True)
            cost = cpu_seconds() - before
            table.optimize(cleanup_older_than=timedelta(0))
            size = sum(file.stat().st_size for file in Path(folder).rglob("_indices/*/*")) / 1e6
            (index,) = table.list_indices()
            kind = table.index_stats(index.name).index_type
            plain = judge(table, queries, nearest, None)
            filtered = judge(table, queries, nearest_left, FILTER)
            yield f"{rows:,} | {dim:,} | {name}, {kind} | {cost:.0f} | {size:.0f} | {plain} | {filtered}"


def run() -> list[str]:
    """A line for each size and index."""
    header = (
        "rows",
        "dimensions",
        "index",
        "CPU s to make",
        "MB",
        "recall@10",
        "ms a search",
        "recall@10, filtered",
        "ms, filtered",
    )
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    return lines + [f"| {line} |" for size in SIZES for line in compare(*size)]
