"""Memory of a step with step negatives as its pairs grow, above what model, gradients and optimizer take.

Each size has a process of its own, which builds a training run, gives every parameter its gradient and its
moments, and then trains on the same 2,048 pairs from disk: in many small steps or in one large one, so that
all sizes run as many chunks, and what the allocator keeps between chunks is in all of them. The pairs are the
mix of the GPU script with smaller pictures, some 130 tokens. Host: growth of the resident memory at its
peak (the kernel's high-water mark, reset before). Device: growth of what torch has allocated at its peak. The
vectors have the width of the hidden state, as those of the 2B model nearly have.
"""

import ctypes
import gc
import multiprocessing
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch

from tests.benchmarks.gpu.mix import MIX, Kind, build_backbone, write_mix
from vipolyqwen_core.config import (
    BatchSettings,
    Distribution,
    ModelSettings,
    Negatives,
    Precision,
    ProcessingSettings,
    Recipe,
    TrainingRun,
    TrainingSettings,
)
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.training.schedule import planned_steps
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.train import chunk_stream

PAIRS_OF_STEP: Final = (128, 512, 2048)
NUM_PAIRS: Final = max(PAIRS_OF_STEP)
PAIRS: Final[tuple[Kind, ...]] = tuple(
    kind if kind.visual_tokens is None else replace(kind, visual_tokens=(16, 64)) for kind in MIX
)
PROCESSING: Final = ProcessingSettings(max_pixels=1024 * 28 * 28)
RECIPE: Final = Recipe(
    name="benchmark",
    backbone="tiny",
    model=ModelSettings(embedding_dim=128),
    processing=PROCESSING,
    batches=BatchSettings(chunk_tokens=4_096, chunk_patches=8_192, negatives=Negatives.STEP),
    training=TrainingSettings(
        epochs=1,
        precision=Precision.BFLOAT16 if torch.cuda.is_available() else Precision.FLOAT32,
        distribution=Distribution.NONE,
        processes=1,
        loader_workers=0,
        activation_checkpointing=False,
    ),
)


def resident(key: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(run: TrainingRun, line: Connection) -> None:
    """Send the chunks of a step, and the growth of memory over all steps: host and device, in bytes."""
    training = prepare(run)
    device = training.accelerator.device
    training.engine.embed(next(chunk_stream(training, 0)))  # libraries take their work space
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)  # ones, since pages of zeros take no memory
    stream, chunks = chunk_stream(training, 0), 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    on_host, on_device = resident("VmRSS"), 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        on_device = torch.cuda.memory_allocated()
    for planned in planned_steps(training.plan, run.recipe, 0, 1):
        assert not training.engine.step(planned, stream).refused
        chunks = planned.num_chunks
    host = resident("VmHWM") - on_host
    line.send((chunks, host, torch.cuda.max_memory_allocated() - on_device if on_device else None))


def measured(run: TrainingRun) -> tuple[int, int, int | None]:
    """The same in a process of its own."""
    context = multiprocessing.get_context("spawn")
    line, far_end = context.Pipe()
    worker = context.Process(target=measure, args=(run, far_end), daemon=True)
    worker.start()
    far_end.close()
    chunks, host, device = line.recv()
    worker.join()
    return chunks, host, device


def run() -> list[str]:
    """Chunks and memory of a step by its pairs, beside the smallest step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = build_backbone(folder / "backbone", at_full_size=False, device=torch.device("cpu"))
        processor = ViPolyQwenProcessor.from_backbone(backbone, PROCESSING)
        training_set = write_mix(folder / "training_set", processor, PAIRS, NUM_PAIRS)
        lines, first = [], (0, 0)
        for count in PAIRS_OF_STEP:
            recipe = replace(RECIPE, batches=replace(RECIPE.batches, pairs_per_step=count))
            output = folder / f"run_{count}"
            told = TrainingRun(recipe=recipe, backbone=backbone, training_set=training_set, output=output)
            chunks, host, device = measured(told)
            first = first if first[0] else (host, device or 0)
            on_device = f"{device / 2**20:,.0f} | {device / first[1]:.3f}" if device else "no GPU | "
            lines.append(
                f"| {count:,} | {chunks} | {host / 2**20:,.0f} | {host / first[0]:.3f} | {on_device} |"
            )
    return [
        f"Chunks of at most {RECIPE.batches.chunk_tokens:,} tokens and {RECIPE.batches.chunk_patches:,} "
        "patches; vectors of 128 dimensions.",
        "",
        "| pairs a step | chunks | host MB | beside the smallest | device MB | beside the smallest |",
        "| --- | --- | --- | --- | --- | --- |",
        *lines,
    ]
