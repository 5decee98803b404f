"""The plan of batches: time and memory to order one epoch, at 1M and 11M rows, by the paper's recipe."""

import resource
import time

import numpy as np

from vipolyqwen_core.contract import Task
from vipolyqwen_core.recipes import qwen2vl_2b_h100x4
from vipolyqwen_core.training.plan import PlanIndex, plan_epoch


def synthetic_index(num_rows: int) -> PlanIndex:
    """Rows of all tasks and four sources; two in five have a picture."""
    random = np.random.default_rng(0)
    images = (random.random(num_rows) < 0.4).astype(np.int32)
    return PlanIndex(
        keys=random.integers(0, 2**63, num_rows, dtype=np.uint64),
        tasks=random.integers(0, len(Task), num_rows, dtype=np.int8),
        sources=random.integers(0, 4, num_rows, dtype=np.int32),
        source_names=("a", "b", "c", "d"),
        tokens=random.integers(20, 1200, num_rows, dtype=np.int32),
        patches=images * random.integers(256, 4096, num_rows, dtype=np.int32),
        images=images,
    )


def run() -> list[str]:
    """Seconds an epoch and peak memory of the process, smaller size first."""
    settings = qwen2vl_2b_h100x4().batches
    lines = ["| rows | seconds an epoch | peak memory, GB |", "| --- | --- | --- |"]
    for num_rows in (1_000_000, 11_000_000):
        index = synthetic_index(num_rows)
        started = time.perf_counter()
        plan_epoch(index, settings, {}, seed=0, epoch=0)
        seconds = time.perf_counter() - started
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(f"| {num_rows:,} | {seconds:.2f} | {peak_gb:.2f} |")
    return lines
