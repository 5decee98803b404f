"""Our training on the device: chunk budgets that fit its memory, settings measured, the original padding."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.gpu.rates import Rates, synchronize
from tests.benchmarks.gpu.scale import Scale
from vipolyqwen_core.config import BatchSettings, Negatives, Recipe, TrainingRun
from vipolyqwen_core.model.compilation import FORWARDS, compile_layers
from vipolyqwen_core.objectives.pairs import TASKS
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item
from vipolyqwen_core.training.engine import PlannedStep
from vipolyqwen_core.training.loading import (
    CHUNKS_AHEAD,
    ChunkLoader,
    ChunkRequest,
    LoadedChunk,
    load_chunks,
)
from vipolyqwen_core.training.meter import Meter
from vipolyqwen_core.training.plan import IntArray, TrainingPlan, plan_training
from vipolyqwen_core.training.schedule import chunk_requests, planned_steps
from vipolyqwen_core.training.setup import Training

Budget = tuple[int, int]
"""Tokens and patches of a chunk at most."""

USABLE_MEMORY = 0.92
"""Share of the device's memory that budgets count on; the rest is fragments and kernels' workspace."""


@dataclass(frozen=True)
class Setting:
    """One way to run a step."""

    negatives: Negatives
    checkpointing: bool
    compiled: bool

    @property
    def name(self) -> str:
        """For tables."""
        parts = [f"{self.negatives.value} negatives"]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts)

    @property
    def decides(self) -> bool:
        """Whether it is the fastest of its negatives, which the goals are about."""
        return self.compiled and not self.checkpointing

    @property
    def passes(self) -> float:
        """Operations that are done, over those that count: forward 1, backward 2, and what is done again."""
        again = (self.negatives is Negatives.STEP) + self.checkpointing
        return (3.0 + again) / 3.0


def apply_setting(training: Training, setting: Setting) -> None:
    """Set model and engine up."""
    model = training.accelerator.unwrap_model(training.model)
    if setting.checkpointing:
        model.activation_checkpointing_enable()
    else:
        model.activation_checkpointing_disable()
    (compile_layers if setting.compiled else restore_layers)(model)
    training.engine.negatives = setting.negatives


def restore_layers(model: nn.Module) -> None:
    """Plain layers again, where they were compiled."""
    for module in model.modules():
        if type(module).__name__ in FORWARDS:
            vars(module).pop("forward", None)


def chunk_loader(run: TrainingRun) -> ChunkLoader:
    """The loader of the run's training set."""
    recipe = run.recipe
    return ChunkLoader(
        run.training_set,
        str(run.backbone),
        recipe.processing,
        recipe.batches.prefix_dropout,
        recipe.training.seed,
    )


def fit_budget(
    training: Training, loader: ChunkLoader, scale: Scale
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Tokens and patches of a chunk that the device's memory holds, from two small chunks of each kind.

    Measured is what the second chunk of a step takes above model, gradients and optimizer; it grows linearly.
    Tokens are measured on texts, patches on the mix as it comes, so a patch pays for its share of the tokens.
    """
    device = training.accelerator.device
    if device.type != "cuda":
        return scale.budget, {}
    index = training.plan.index
    fitted, found = [], {}
    mixed = np.random.default_rng(0).permutation(len(index))
    kinds = (("token", index.tokens, mixed[index.images[mixed] == 0]), ("patch", index.patches, mixed))
    for limit, (kind, sizes, order) in zip(scale.budget, kinds, strict=True):
        amounts, taken = [], []
        for amount in scale.probe:
            rows = order[: int(np.searchsorted(np.cumsum(sizes[order]), amount)) + 1]
            chunk = loader[ChunkRequest(0, 0, rows, needs_picture=False)]
            planned = PlannedStep(0, 2 * len(rows), 2, bool(index.images[rows].any()), 0.0, 2)
            training.engine.step(planned, iter([chunk, chunk]))
            torch.cuda.reset_peak_memory_stats(device)
            training.engine.step(planned, iter([chunk, chunk]))
            amounts.append(int(sizes[rows].sum()))
            taken.append(torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device))
        each = (taken[1] - taken[0]) / (amounts[1] - amounts[0])
        fixed = max(taken[0] - each * amounts[0], 0.0)
        total = torch.cuda.get_device_properties(device).total_memory
        free = USABLE_MEMORY * total - torch.cuda.memory_allocated(device) - fixed
        fitted.append(int(min(limit, max(free / max(each, 1.0), scale.probe[0]))))
        found[f"bytes_a_{kind}"] = each
        found[f"fixed_bytes_{kind}"] = fixed
    return (fitted[0], fitted[1]), found


def measure_setting(
    training: Training,
    run: TrainingRun,
    setting: Setting,
    budget: tuple[int, int],
    rates: Rates,
    scale: Scale,
) -> dict[str, Any]:
    """Figures of a setting over whole steps, after a small one that warms up; loading in worker processes.

    A setting that a goal is about goes on until it has taken half as many chunks again as the loaders hold
    ready at the start: only then does the time that it waits for them say something.
    """
    device = training.accelerator.device
    batches = replace(
        run.recipe.batches, negatives=setting.negatives, chunk_tokens=budget[0], chunk_patches=budget[1]
    )
    plans = [
        # two chunks at least, so that both passes of step negatives have been run
        _plan(
            training,
            run,
            replace(batches, pairs_per_step=scale.warm_pairs, chunk_pairs=scale.warm_pairs // 2),
            1,
        ),
        _plan(training, run, batches, None, epochs=2),
    ]
    workers = run.recipe.training.loader_workers
    least_taken = 3 * CHUNKS_AHEAD * workers // 2 if setting.decides and scale.at_full_size else 0
    requests = chain.from_iterable(chunk_requests(plan, recipe, 0, 0, 1) for plan, recipe in plans)
    loaded = load_chunks(chunk_loader(run), requests, workers, device.type == "cuda")
    meter = Meter(training.counter)
    with closing(meter.watch(loaded)) as stream:
        for planned in _steps(plans[0]):
            meter.begin(planned)
            training.engine.step(planned, stream)
        synchronize(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        meter.restart()
        started, steps, chunks, taken, refused = time.perf_counter(), 0, 0, 0, 0
        for planned in _steps(plans[1]):
            meter.begin(planned)
            result = training.engine.step(planned, stream)
            steps, chunks, refused = steps + 1, chunks + planned.num_chunks, refused + result.refused
            again = planned.num_chunks - planned.num_held if setting.negatives is Negatives.STEP else 0
            taken += planned.num_chunks + again
            if time.perf_counter() - started > scale.row_seconds and taken >= least_taken:
                break
        synchronize(device)
        figures = meter.throughput.metrics(1, rates.matmul_flops)
    seen = meter.throughput
    rate = figures["pairs_per_second"]
    return {
        **{name: figures[name] for name in ("pairs_per_second", "tokens_per_second", "waiting_share")},
        "useful_token_share": figures["useful_token_share"],
        "flops_a_pair": seen.flops / seen.pairs,
        "flops_per_second": seen.flops / seen.pairs * rate,
        "share_of_matmul_rate": figures["mfu"],
        "share_of_sustained_rate": figures["mfu"] * rates.matmul_flops / rates.sustained_matmul_flops,
        "share_with_recomputation": figures["mfu"] * setting.passes,
        "loader_pairs_per_second": rate * max(workers, 1) / figures["loading_share"],
        "peak_gb": _peak_gb(device),
        "steps": steps,
        "refused_steps": refused,
        "chunks_a_step": chunks / steps,
        "chunk_tokens": budget[0],
        "chunk_patches": budget[1],
    }


def measure_padded(
    training: Training, loader: ChunkLoader, num_pairs: int, rates: Rates, scale: Scale
) -> dict[str, Any]:
    """The original way: texts alone, every side padded to the longest length, in this engine's own kernels.

    One chunk is one step; the second of two is timed. Operations count the padding, as they are done.
    """
    device = training.accelerator.device
    texts = np.nonzero(training.plan.index.images == 0)[0][:num_pairs]
    chunk = _padded(loader, texts, scale.padded_tokens)
    planned = PlannedStep(0, num_pairs, 1, False, 0.0, 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        synchronize(device)
        started = time.perf_counter()
        training.engine.step(planned, iter([chunk]))
        synchronize(device)
    seconds = time.perf_counter() - started
    flops = training.counter.count(chunk.packed)
    return {
        "pairs_per_second": num_pairs / seconds,
        "tokens_per_second": chunk.packed.num_tokens / seconds,
        "flops_a_pair": flops / num_pairs,
        "flops_per_second": flops / seconds,
        "share_of_matmul_rate": flops / seconds / rates.matmul_flops,
        "share_of_sustained_rate": flops / seconds / rates.sustained_matmul_flops,
        "peak_gb": _peak_gb(device),
        "pairs_of_a_step": num_pairs,
    }


def _padded(loader: ChunkLoader, rows: IntArray, length: int) -> LoadedChunk:
    """A chunk whose sides are filled with the end-of-text token."""
    plain = loader[ChunkRequest(0, 0, rows, needs_picture=False)]
    taken = loader.rows.take(rows)
    items = [Item(row[side]) for side in ("query", "target") for row in taken]
    filler = loader.processor.vocabulary.special_ids["<|endoftext|>"]
    encoded = [
        replace(item, input_ids=np.pad(item.input_ids, (0, length - item.num_tokens), constant_values=filler))
        for item in loader.processor.encode_batch(items)
    ]
    return replace(plain, packed=pack(encoded))


def _plan(
    training: Training, run: TrainingRun, batches: BatchSettings, max_steps: int | None, epochs: int = 1
) -> tuple[TrainingPlan, Recipe]:
    recipe = replace(run.recipe, batches=batches)
    plan = plan_training(training.plan.index, batches, {}, recipe.training.seed, epochs, max_steps)
    return plan, recipe


def _steps(planned: tuple[TrainingPlan, Recipe]) -> Iterator[PlannedStep]:
    """The steps of a plan, at a rate that leaves the weights as they are: settings stay comparable."""
    return (replace(step, learning_rate=0.0) for step in planned_steps(*planned, 0, 1))


def _peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def tasks_of_mix(training: Training) -> dict[str, int]:
    """Pairs of the training set by task."""
    counts = np.bincount(training.plan.index.tasks, minlength=len(TASKS))
    return {task.value: int(count) for task, count in zip(TASKS, counts, strict=True) if count}
