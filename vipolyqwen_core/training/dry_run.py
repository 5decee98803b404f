"""A dry run: what a training would do, from the index and the configuration alone. No weights are loaded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vipolyqwen_core.config import Distribution, Precision, TrainingRun
from vipolyqwen_core.model.configuration import ViPolyQwenConfig
from vipolyqwen_core.model.modeling import ViPolyQwenModel, known_backbone
from vipolyqwen_core.objectives.pairs import TASKS
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.training.flops import FlopCounter
from vipolyqwen_core.training.identity import refuse_other_data
from vipolyqwen_core.training.loading import refuse_other_lengths
from vipolyqwen_core.training.plan import (
    IntArray,
    TrainingPlan,
    count_uses,
    plan_chunks,
    plan_training,
    read_plan_index,
)

SAMPLED_STEPS = 200
"""Steps whose chunks are looked at; the others are like them."""
STATE_BYTES = 16
"""Bytes a parameter takes: weight, gradient and two moments in float32."""
CHECKPOINT_BYTES = 12
"""Bytes a parameter takes in a checkpoint: weight and two moments in float32."""
WEIGHT_BYTES = 4
"""Bytes a parameter takes on each process, which reads the whole model in float32, whatever it keeps."""
GRADIENT_BYTES = 4
"""Bytes a parameter's gradient takes on each process: FSDP2 shares gradients out once a step, behind its last
chunk; data parallel exchanges them through buckets of its own."""
KEPT_WIDTHS = {"plain": (37.0, 20.0), "compiled": (17.0, 10.0), "checkpointing": (1.8, 1.1)}
"""Values that a layer keeps for its backward, of a token and of a patch, in widths of their hidden states: as
`make bench-gpu` found them with Qwen2-VL-2B's shapes on an H100."""


@dataclass(frozen=True)
class ChunkFigures:
    """What the chunks of some steps are like."""

    chunks_per_step: float
    tokens: float
    largest_tokens: int
    largest_patches: int
    """Neither need be in the same chunk as the other."""
    filled: float
    balance: float
    filler: float
    """Share of tokens that belong to no pair: a process without pairs in a chunk computes one empty item."""


def describe(run: TrainingRun, pairs_per_second: float | None = None, machines: int = 1) -> str:
    """The plan in words: steps, pairs, tokens, chunks, operations, memory, and the time at a rate.

    Each machine has the processes that the settings ask for.

    Raises:
        ValueError: the training set or the backbone does not fit
    """
    return "\n".join(f"{name:<28}{value}" for name, value in _lines(run, pairs_per_second, machines))


def _lines(run: TrainingRun, pairs_per_second: float | None, machines: int) -> Iterator[tuple[str, str]]:
    settings, batches = run.recipe.training, run.recipe.batches
    processes = settings.processes * machines
    refuse_other_data(run)
    index = read_plan_index(run.training_set / "index.parquet", run.hard_negatives)
    refuse_other_lengths(run, index)
    plan = plan_training(
        index, batches, run.source_weights, settings.seed, settings.epochs, settings.max_steps
    )
    uses = _uses(plan)
    num_uses = int(uses.sum())
    yield "training set", f"{len(index):,} pairs in {run.training_set}"
    by_task = np.bincount(index.tasks, weights=uses, minlength=len(TASKS))
    yield "uses in all steps", f"{num_uses:,}"
    for task, count in zip(TASKS, by_task, strict=True):
        yield f"  {task.value}", f"{count:,.0f}"
    epochs = plan.locate(plan.num_steps - 1)[0] + 1
    yield (
        "steps",
        f"{plan.num_steps:,} of {num_uses / plan.num_steps:.1f} pairs on average ({epochs} epochs)",
    )
    tokens, patches = (int(sizes @ uses) for sizes in (index.tokens, index.patches))
    most_tokens, most_patches = (int(sizes[uses > 0].max()) for sizes in (index.tokens, index.patches))
    yield "tokens of a pair", f"{tokens / num_uses:.1f} on average, {most_tokens:,} at most"
    yield "patches of a pair", f"{patches / num_uses:.1f} on average, {most_patches:,} at most"
    figures = _chunks(plan, run, processes, (most_tokens, most_patches))
    yield "tokens in all", f"{tokens:.4g}"
    yield "padding", f"none: sequences are packed; {figures.filler:.2%} of the tokens fill empty places"
    shared = f"{settings.distribution.value}, {settings.precision.value}"
    yield "processes", f"{processes}, {settings.processes} on a machine, {shared}"
    yield (
        "chunks",
        f"{figures.chunks_per_step:.1f} a step on each process, {figures.tokens:,.0f} tokens on average",
    )
    yield (
        "filling",
        f"{figures.filled:.0%} of the budget; least loaded process {figures.balance:.0%} of the mean",
    )
    yield from _model_lines(run, processes, tokens, patches, num_uses, figures)
    if pairs_per_second is not None:
        hours = num_uses / pairs_per_second / 3600
        yield f"time at {pairs_per_second:g} pairs/s", f"{hours:.1f} hours ({hours / 24:.2f} days)"


def _model_lines(
    run: TrainingRun, processes: int, tokens: int, patches: int, num_uses: int, figures: ChunkFigures
) -> Iterator[tuple[str, str]]:
    """Of the model, for the tokens and patches of all uses."""
    settings = run.recipe.training
    processor = ViPolyQwenProcessor.from_backbone(str(run.backbone), run.recipe.processing)
    config = known_backbone(run.backbone)
    with torch.device("meta"):
        model = ViPolyQwenModel(ViPolyQwenConfig.of(config, run.recipe.model, processor))
    counter = FlopCounter.of(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linear = counter.products(tokens, patches, num_items=2 * num_uses)
    yield "parameters", f"{parameters:,}"
    yield (
        "operations",
        f"{linear / num_uses:.3g} a pair, {linear:.3g} in all: attention and recomputation not counted",
    )
    shards = processes if settings.distribution is Distribution.FSDP2 else 1
    state = parameters * STATE_BYTES / shards / 1e9
    held = f"; {parameters * GRADIENT_BYTES / 1e9:.2f} GB of"
    waiting = ""
    if shards > 1 and figures.chunks_per_step > 1:
        waiting = f"{held} gradients that wait for the last chunk of a step"
    elif settings.distribution is Distribution.DATA_PARALLEL and processes > 1:
        waiting = f"{held} buckets in which gradients are exchanged"
    text = model.backbone.language_model.config
    width = 2 if settings.precision is Precision.BFLOAT16 else 4
    visual = model.backbone.visual
    modes = {"checkpointing": settings.activation_checkpointing, "compiled": settings.compile_layers}
    of_token, of_patch = KEPT_WIDTHS[next((mode for mode, chosen in modes.items() if chosen), "plain")]
    activations = (
        figures.largest_tokens * of_token * text.num_hidden_layers * text.hidden_size
        + figures.largest_patches * of_patch * len(visual.blocks) * visual.patch_embed.proj.out_channels
    ) * (width / 1e9)
    yield (
        "memory of a process",
        f"{state:.2f} GB of weights, gradients and moments{waiting}; activations: about {activations:.2f} GB "
        "at most",
    )
    read = settings.processes * parameters * WEIGHT_BYTES / 1e9
    yield "host memory of a machine", f"{read:.2f} GB while its processes read the weights"
    saved = parameters * CHECKPOINT_BYTES / 1e9
    best = settings.eval_steps is not None
    yield (
        "checkpoints",
        f"{saved:.2f} GB each; {settings.keep_checkpoints + best + 1} at most on the disk, one of them being "
        "written",
    )


def _uses(plan: TrainingPlan) -> IntArray:
    """How often each row is used: [R]. A run may stop within its last epoch, the one that is ordered here."""
    last, number = plan.locate(plan.num_steps - 1)
    epoch = plan.epoch(last)
    uses: IntArray = np.bincount(epoch.rows[: epoch.offsets[number + 1]], minlength=len(plan.index))
    for whole in range(last):
        uses += count_uses(plan.index, plan.source_weights, plan.seed, whole)
    return uses


def _sample(plan: TrainingPlan) -> list[int]:
    return [int(step) for step in np.unique(np.linspace(0, plan.num_steps - 1, SAMPLED_STEPS).astype(int))]


def _chunks(plan: TrainingPlan, run: TrainingRun, ranks: int, largest_pair: tuple[int, int]) -> ChunkFigures:
    """Figures of the chunks of some steps; the largest of all may be one pair that is beyond the budget."""
    batches = run.recipe.batches
    numbers, tokens, patches, loads, least, empty = [], [], [], [], [], 0
    for step in _sample(plan):
        chunks = plan_chunks(plan.index, plan.rows(step), batches, ranks)
        numbers.append(len(chunks))
        for chunk in chunks:
            of_rank = [int(plan.index.tokens[rows].sum()) for rows in chunk.rows]
            tokens += of_rank
            patches += [int(plan.index.patches[rows].sum()) for rows in chunk.rows]
            empty += sum(not len(rows) for rows in chunk.rows)
            least.append(min(of_rank) / max(float(np.mean(of_rank)), 1.0))
            loads += [
                max(
                    plan.index.tokens[rows].sum() / batches.chunk_tokens,
                    plan.index.patches[rows].sum() / batches.chunk_patches,
                    len(rows) / batches.chunk_pairs if batches.chunk_pairs else 0.0,
                )
                for rows in chunk.rows
            ]
    return ChunkFigures(
        chunks_per_step=float(np.mean(numbers)),
        tokens=float(np.mean(tokens)),
        largest_tokens=max(*tokens, largest_pair[0]),
        largest_patches=max(*patches, largest_pair[1]),
        filled=float(np.mean(loads)),
        balance=float(np.mean(least)),
        filler=empty / (sum(tokens) + empty),
    )
