"""The plan of batches: which pairs form which optimizer step, and which chunk on which rank.

A pure function of the training set's index, the batch settings, the sources' weights, seed and epoch. Every
rank and every resumed run computes the same plan from the same numbers, so nothing about the order of data is
ever stored or sent. Steps do not depend on the number of ranks; chunks do.

Uses: a row whose source weighs w is used floor(w) times an epoch, and once more with probability
w - floor(w), decided by a hash. Steps: all of an epoch are equally large to within one pair and never larger
than `pairs_per_step`: no short last step weighs its few pairs more than others. Homogeneous steps are so
within a task: a task of few pairs has one short step. Sub-batches: steps have equally many groups to within
one, and the groups of a task equally many pairs.

Text first (`text_first`): in the first epoch all uses of pairs without a picture, be it on a side or on a
hard negative, come before those of pairs with one; later epochs are mixed. Steps are cut as ever, so where
one meets the other a mixed step holds the last pairs without pictures and the first with them. Groups hold
the one or the other, never both: a homogeneous step, too, is without pictures or has one in each pair, and a
step of sub-batches may hold groups of both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vipolyqwen_core.config import BatchSettings, TaskBatching
from vipolyqwen_core.corpus.tables import read_batches
from vipolyqwen_core.hashes import Hashes, sample_keys, splitmix
from vipolyqwen_core.objectives.pairs import TASKS
from vipolyqwen_core.training.hard_negatives import mined_sizes

IntArray = npt.NDArray[np.int64]
MAX_USES = 200_000_000
"""Uses of pairs in an epoch: ordering takes up to 80 bytes each, in every process that trains."""
TASK_CODES = {task.value: code for code, task in enumerate(TASKS)}
GOLDEN = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF
NUM_KINDS = 2 * len(TASKS)
"""Kinds of pairs that share no group: the tasks, and those of pairs that come later in their epoch."""


@dataclass(frozen=True, eq=False)
class PlanIndex:
    """What the plan knows of the R rows of a training set.

    Shapes:
        keys: [R] uint64, the first 16 hex digits of the sample id
        tasks: [R] int8, places in `TASKS`
        sources: [R] int32, places in `source_names`
        tokens, patches, images: [R] int32, over both sides and the hard negatives
    """

    keys: Hashes
    tasks: npt.NDArray[np.int8]
    sources: npt.NDArray[np.int32]
    source_names: tuple[str, ...]
    tokens: npt.NDArray[np.int32]
    patches: npt.NDArray[np.int32]
    images: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)


def read_plan_index(path: Path, mined: Path | None = None) -> PlanIndex:
    """The index of a training set, `index.parquet`, read batch by batch into plain arrays.

    Args:
        mined: folder of mined hard negatives, which make rows longer; none: nothing was mined
    Raises:
        ValueError: the file is missing, empty or cut, holds an unknown task, or the mined ones are of other
            rows
    """
    if not path.is_file():
        raise ValueError(f"no plan index {path}: build the training set first")
    source_codes: dict[str, int] = {}
    parts = [_columns(batch, source_codes, path) for batch in read_batches(path, 1 << 20)]
    if not parts or not sum(len(part[0]) for part in parts):
        raise ValueError(f"{path} holds no rows: nothing to train on")
    keys, tasks, sources, tokens, patches, images = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    if mined is not None:
        added = mined_sizes(mined)
        if len(added[0]) != len(keys):
            raise ValueError(f"{mined} is of {len(added[0])} rows, {path} has {len(keys)}: mine anew")
        tokens, patches, images = (
            own + more for own, more in zip((tokens, patches, images), added, strict=True)
        )
    return PlanIndex(keys, tasks, sources, tuple(source_codes), tokens, patches, images)


def _columns(batch: pa.RecordBatch, source_codes: dict[str, int], path: Path) -> tuple[Any, ...]:
    """Keys, tasks, sources, tokens, patches and images of some rows; sources that are new get a code.

    Raises:
        ValueError: the batch holds an unknown task
    """
    tasks = batch.column("task").dictionary_encode()
    sources = batch.column("source").dictionary_encode()
    unknown = set(tasks.dictionary.to_pylist()) - set(TASK_CODES)
    if unknown:
        raise ValueError(f"{path}: unknown task {min(unknown)!r}")
    to_task = np.array([TASK_CODES[name] for name in tasks.dictionary.to_pylist()], dtype=np.int8)
    to_source = np.array(
        [source_codes.setdefault(name, len(source_codes)) for name in sources.dictionary.to_pylist()],
        dtype=np.int32,
    )
    return (
        sample_keys(batch.column("sample_id").to_pylist()),
        to_task[tasks.indices.to_numpy()],
        to_source[sources.indices.to_numpy()],
        *(batch.column(name).to_numpy().astype(np.int32) for name in ("tokens", "patches", "images")),
    )


def mixed_seed(*numbers: int) -> int:
    """One 64-bit number out of several: of seed, epoch and purpose; of seed and step."""
    state = 0
    for number in numbers:
        state = (state + GOLDEN + number) & MASK
        state = int(splitmix(np.array([state], dtype=np.uint64))[0])
    return state


def uniform(keys: Hashes, *numbers: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each key, a function of key and numbers alone."""
    mixed = splitmix(keys + np.uint64(mixed_seed(*numbers)))
    return (mixed >> np.uint64(11)) * np.float64(2.0**-53)


ORDER, FRACTION, GROUP, PREFIX = range(4)
"""What a random number is drawn for: order of an epoch, one more use, order of groups, dropping a prefix."""


def drops_prefix(keys: Hashes, share: float, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """Which samples go without their prefix in this epoch: [n] of bool."""
    return uniform(keys, seed, epoch, PREFIX) < share


def count_uses(index: PlanIndex, source_weights: Mapping[str, float], seed: int, epoch: int) -> IntArray:
    """How often each row is used in the epoch: [R].

    Raises:
        ValueError: more often than an epoch can be ordered
    """
    by_source = np.array([source_weights.get(name, 1.0) for name in index.source_names], dtype=np.float64)
    weights = by_source[index.sources]
    expected = float(weights.sum())
    if expected > MAX_USES:
        raise ValueError(
            f"the source weights {dict(source_weights)} ask for {expected:,.4g} uses of pairs an epoch, more "
            f"than {MAX_USES:,}: a weight is the expected uses of a row; smaller ones in the same proportion "
            "and more training.epochs come to the same"
        )
    whole = np.floor(weights).astype(np.int64)
    once_more = uniform(index.keys, seed, epoch, FRACTION) < weights - whole
    uses: IntArray = whole + once_more
    return uses


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The steps of one epoch.

    Shapes:
        rows: [U] row of each use, in the order of the steps
        offsets: [steps + 1] where each step begins in `rows`
    """

    rows: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def step(self, number: int) -> IntArray:
        """Rows of a step of this epoch, from 0."""
        return self.rows[self.offsets[number] : self.offsets[number + 1]]


def plan_epoch(
    index: PlanIndex, settings: BatchSettings, source_weights: Mapping[str, float], seed: int, epoch: int
) -> EpochPlan:
    """The steps of one epoch, the same for any number of ranks and any order of the index.

    Several uses of a row spread over the epoch: use u of n falls into its u-th n-th part. So do the groups of
    a task, so that each task comes up all along; a use at the edge of a part may then fall a group beyond it.
    With `text_first` they spread over that part of the first epoch which is theirs.

    Raises:
        ValueError: the weights ask for more uses than can be ordered
    """
    uses = count_uses(index, source_weights, seed, epoch)
    rows = np.repeat(np.arange(len(index)), uses)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(uses) - uses, uses)
    draws = uniform(splitmix(index.keys[rows]) + nth.astype(np.uint64), seed, epoch, ORDER)
    position = (nth + draws) / uses[rows]
    later = _comes_later(index, settings, epoch)
    if settings.task_batching is TaskBatching.MIXED:
        rows = rows[_order(later[rows] + position, index.keys[rows])]
        return EpochPlan(rows, _boundaries(len(rows), settings.pairs_per_step))

    kinds_of_uses = _kinds(index, later)[rows]
    rows = rows[_order(kinds_of_uses + position, index.keys[rows])]
    sizes, kinds = _group_sizes(np.bincount(kinds_of_uses, minlength=NUM_KINDS), _group_pairs(settings))
    groups = np.bincount(kinds, minlength=NUM_KINDS)  # of each kind
    nth = np.arange(len(sizes)) - np.repeat(np.cumsum(groups) - groups, groups)
    draws = uniform(splitmix(kinds.astype(np.uint64)) + nth.astype(np.uint64), seed, epoch, GROUP)
    order = np.argsort((kinds >= len(TASKS)) + (nth + draws) / np.repeat(groups, groups))
    starts = np.cumsum(sizes) - sizes
    sizes = sizes[order]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(len(rows)) - np.repeat(ends[:-1], sizes)
    rows = rows[np.repeat(starts[order], sizes) + within]
    groups_per_step = settings.pairs_per_step // _group_pairs(settings)
    return EpochPlan(rows, ends[_boundaries(len(sizes), groups_per_step)])


def _comes_later(index: PlanIndex, settings: BatchSettings, epoch: int) -> npt.NDArray[np.bool_]:
    """Rows whose uses come behind those of all others in this epoch: [R]."""
    has_picture: npt.NDArray[np.bool_] = index.images > 0
    return has_picture if settings.text_first and epoch == 0 else np.zeros_like(has_picture)


def _kinds(index: PlanIndex, later: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """The kind of each row, below `NUM_KINDS`: its task, and whether it comes later. [R]"""
    kinds: npt.NDArray[np.int8] = index.tasks + np.int8(len(TASKS)) * later
    return kinds


def _order(positions: npt.NDArray[np.float64], keys: Hashes) -> IntArray:
    """Places in ascending order of position, then of key: the same on any machine."""
    order = np.argsort(positions)  # not stable, but several times as fast as a sort by two columns
    ordered = positions[order]
    return np.lexsort((keys, positions)) if np.any(ordered[1:] == ordered[:-1]) else order


def _group_pairs(settings: BatchSettings) -> int:
    """Pairs that stay together and share a task."""
    if settings.task_batching is TaskBatching.HOMOGENEOUS:
        return settings.pairs_per_step
    return settings.sub_batch_pairs


def _group_sizes(counts: IntArray, largest: int) -> tuple[IntArray, IntArray]:
    """Sizes of the groups of each kind, equal to within one, and the kind of each group."""
    sizes = [np.diff(_boundaries(int(count), largest)) for count in counts]
    kinds = np.repeat(np.arange(len(counts)), [len(of_task) for of_task in sizes])
    return np.concatenate(sizes), kinds


def _boundaries(count: int, largest: int) -> IntArray:
    """Where `count` things are cut into the fewest parts not above `largest`, equal to within one."""
    parts = -(-count // largest)
    return np.arange(parts + 1) * count // max(parts, 1)


def _count_steps(
    index: PlanIndex, settings: BatchSettings, source_weights: Mapping[str, float], seed: int, epoch: int
) -> int:
    """Steps of an epoch, without ordering it."""
    uses = count_uses(index, source_weights, seed, epoch)
    if settings.task_batching is TaskBatching.MIXED:
        return -(-int(uses.sum()) // settings.pairs_per_step)
    kinds = _kinds(index, _comes_later(index, settings, epoch))
    counts = np.bincount(kinds, weights=uses, minlength=NUM_KINDS).astype(np.int64)
    groups = int((-(-counts // _group_pairs(settings))).sum())
    return -(-groups // (settings.pairs_per_step // _group_pairs(settings)))


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All steps of a run, by their number from 0."""

    index: PlanIndex
    settings: BatchSettings
    source_weights: Mapping[str, float]
    seed: int
    first_steps: tuple[int, ...]
    """Number of the first step of each epoch that the run reaches, and of the step after the last of them."""
    num_steps: int
    """Steps of the run: of its epochs, or fewer where it is to stop earlier."""

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its number within it."""
        epoch = int(np.searchsorted(self.first_steps, step, side="right")) - 1
        return epoch, step - self.first_steps[epoch]

    def rows(self, step: int) -> IntArray:
        """Rows of a step."""
        epoch, number = self.locate(step)
        return self.epoch(epoch).step(number)

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the last two asked for are kept."""
        return _kept_epoch(self, epoch)

    def steps(self, first: int = 0) -> Iterator[tuple[int, int, IntArray]]:
        """Number, epoch and rows of each step from `first` on."""
        for step in range(first, self.num_steps):
            yield step, self.locate(step)[0], self.rows(step)


@lru_cache(maxsize=2)  # loading runs ahead into the next epoch
def _kept_epoch(plan: TrainingPlan, epoch: int) -> EpochPlan:
    return plan_epoch(plan.index, plan.settings, plan.source_weights, plan.seed, epoch)


def plan_training(
    index: PlanIndex,
    settings: BatchSettings,
    source_weights: Mapping[str, float],
    seed: int,
    epochs: int,
    max_steps: int | None = None,
) -> TrainingPlan:
    """The plan of a whole run: its steps are counted, a pass over the keys an epoch; none is ordered yet.

    Epochs behind `max_steps` are not looked at: there may be any number of them.

    Raises:
        ValueError: an epoch has no pair, or more than can be ordered
    """
    first_steps = [0]
    for epoch in range(epochs):
        steps = _count_steps(index, settings, source_weights, seed, epoch)
        if not steps:
            raise ValueError(f"the source weights {dict(source_weights)} leave an epoch without a pair")
        first_steps.append(first_steps[-1] + steps)
        if max_steps is not None and first_steps[-1] >= max_steps:
            break
    num_steps = first_steps[-1] if max_steps is None else min(first_steps[-1], max_steps)
    return TrainingPlan(index, settings, dict(source_weights), seed, tuple(first_steps), num_steps)


@dataclass(frozen=True, eq=False)
class Chunk:
    """One forward and backward, on all ranks at once: rank r embeds `rows[r]`, which may be empty."""

    rows: tuple[IntArray, ...]
    has_pictures: bool
    """Whether any rank's rows have a picture: then every rank runs the vision tower."""


def plan_chunks(index: PlanIndex, rows: IntArray, settings: BatchSettings, num_ranks: int) -> list[Chunk]:
    """The chunks of a step: as few as the budgets of tokens, patches and pairs allow, and evenly filled.

    Pairs are ordered by task first, so that a chunk's candidates are mostly of one task and chunks of text
    alone leave the vision tower out. The ordered rows are cut into chunks x ranks consecutive cells with the
    smallest possible largest load; a pair that is over budget by itself gets a cell of its own.
    """
    ordered = rows[np.argsort(index.tasks[rows], kind="stable")]
    loads = np.maximum(
        index.tokens[ordered] / settings.chunk_tokens, index.patches[ordered] / settings.chunk_patches
    )
    if settings.chunk_pairs is not None:
        loads = np.maximum(loads, 1.0 / settings.chunk_pairs)
    num_cells = num_ranks * -(-len(_cut(loads, 1.0)) // num_ranks)
    ends = _cut_evenly(loads, num_cells)
    starts = [0, *ends[:-1]]
    cells = [ordered[start:end] for start, end in zip(starts, ends, strict=True)]
    cells += [ordered[:0]] * (num_cells - len(cells))
    return [
        Chunk(
            tuple(cells[first : first + num_ranks]),
            any(bool(index.images[cell].any()) for cell in cells[first : first + num_ranks]),
        )
        for first in range(0, num_cells, num_ranks)
    ]


def _cut(loads: npt.NDArray[np.float64], capacity: float) -> list[int]:
    """Ends of consecutive cells, each filled up to the capacity; a larger load stands alone."""
    total = np.concatenate([[0.0], np.cumsum(loads)])
    limit = capacity + 1e-9  # sums of 1 / chunk_pairs do not reach 1 exactly
    ends, start = [], 0
    while start < len(loads):
        start = max(start + 1, int(np.searchsorted(total, total[start] + limit, side="right")) - 1)
        ends.append(start)
    return ends


def _cut_evenly(loads: npt.NDArray[np.float64], num_cells: int) -> list[int]:
    """Ends of at most `num_cells` cells: no cell empty, the largest load as small as a bisection finds it."""
    low, high = min(float(loads.sum()) / num_cells, 1.0), 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_cut(loads, middle)) <= num_cells else (middle, high)
    ends = _cut(loads, high)
    while len(ends) < min(num_cells, len(loads)):  # what is left over halves the cell with the most pairs
        sizes = np.diff([0, *ends])
        widest = int(np.argmax(sizes))
        ends.insert(widest, ends[widest] - int(sizes[widest]) // 2)
    return ends
