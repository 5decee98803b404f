"""Is it right, before it is fast: kernels, vectors and loss of the device against float32 and the CPU."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.gpu.scale import Scale
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.model.attention import attend
from vipolyqwen_core.model.compilation import compile_layers
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.objectives.pairs import split_vectors
from vipolyqwen_core.objectives.routing import compute_losses
from vipolyqwen_core.processing.packing import Segments
from vipolyqwen_core.training.engine import PlannedStep
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest, LoadedChunk
from vipolyqwen_core.training.setup import Training


@dataclass(frozen=True)
class Check:
    """What was compared, and how it came out."""

    name: str
    value: float
    limit: float
    passed: bool

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> "Check":
        """Passed from the limit on; NaN never passes."""
        return cls(name, value, limit, value >= limit)

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> "Check":
        """Passed up to the limit; NaN never passes."""
        return cls(name, value, limit, value <= limit)


def check_attention(device: torch.device) -> list[Check]:
    """The bfloat16 kernels against float32 attention of the same values, both towers' heads: cosines."""
    checks = []
    for name, heads, shared, size, causal in (
        ("language model", 12, 2, 128, True),
        ("vision tower", 16, 16, 80, False),
    ):
        random = torch.Generator().manual_seed(0)
        lengths = [7, 1, 300, 64, 64, 129]
        shapes = [(sum(lengths), count, size) for count in (heads, shared, shared, heads)]
        *rows, weights = (torch.randn(shape, generator=random).bfloat16().to(device) for shape in shapes)
        packed = Segments.of(lengths)
        segments = Segments(packed.lengths, packed.cu_seqlens.to(device))
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            states = [part.detach().to(dtype).requires_grad_() for part in rows]
            attended = attend(*states, segments, causal, size**-0.5)
            (attended * weights).sum().backward()
            results.append([attended, *(part.grad for part in states)])
        cosines = [_cosine(one, other) for one, other in zip(*results, strict=True)]
        checks.append(Check.at_least(f"attention of the {name}, bf16 to fp32, cosine", min(cosines), 0.999))
    return checks


def chunk_of_each_kind(training: Training, loader: ChunkLoader, num_pairs: int) -> LoadedChunk:
    """About so many pairs, of all kinds alike: pictures are among them."""
    tasks = training.plan.index.tasks
    kinds = [np.nonzero(tasks == task)[0] for task in np.unique(tasks)]
    rows = np.concatenate([of_kind[: max(num_pairs // len(kinds), 1)] for of_kind in kinds])
    return loader[ChunkRequest(0, 0, rows, needs_picture=False)]


def check_vectors(training: Training, run: TrainingRun, loader: ChunkLoader, scale: Scale) -> list[Check]:
    """Vectors and loss of a few pairs with pictures, full model: CPU float32, device float32 and bfloat16."""
    device = training.accelerator.device
    chunk = chunk_of_each_kind(training, loader, scale.checked_pairs)
    reference = ViPolyQwenModel.from_backbone(run.backbone, run.recipe.model, run.recipe.processing)
    exact, exact_loss = _vectors_and_loss(reference.train(), chunk, run, torch.device("cpu"), None)
    del reference
    model = training.accelerator.unwrap_model(training.model).train()
    single, single_loss = _vectors_and_loss(model, chunk, run, device, None)
    half, half_loss = _vectors_and_loss(model, chunk, run, device, torch.bfloat16)
    return [
        Check.at_least("vectors, fp32, device to CPU, lowest cosine", _lowest(single, exact), 0.9999),
        Check.at_least("vectors, bf16 to fp32, lowest cosine", _lowest(half, single), 0.99),
        Check.at_most("loss, fp32, device to CPU, relative", abs(single_loss / exact_loss - 1), 1e-3),
        Check.at_most("loss, bf16 to fp32, relative", abs(half_loss / single_loss - 1), 3e-2),
    ]


def check_waiting(training: Training, chunk: LoadedChunk) -> Check:
    """How often the host waits for the device in a step of four chunks: once, for the gradient's norm."""
    device = training.accelerator.device
    planned = PlannedStep(0, 4 * chunk.keys.num_pairs, 4, chunk.packed.pictures is not None, 0.0, 4)
    if device.type == "cuda":
        chunk = chunk.pin_memory()
        training.engine.step(planned, iter([chunk] * 4))
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        training.engine.step(planned, iter([chunk] * 4))
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in seen if "synchroniz" in str(warning.message)]
    for place in sorted({f"{warning.filename}:{warning.lineno}" for warning in waits}):
        print(f"  the host waits at {place}", flush=True)
    return Check.at_most("waits for the device in a step of four chunks", len(waits), 1)


def check_compiled(training: Training, chunk: LoadedChunk) -> Check:
    """Gradients of a chunk by plain layers and by compiled ones, which they are afterwards: cosine, worse
    tower."""
    plain = _gradients(training, chunk)
    compile_layers(training.accelerator.unwrap_model(training.model))
    compiled = _gradients(training, chunk)
    cosines = []
    for tower in ("visual", "language_model"):
        names = [name for name in plain if tower in name]
        dot, one, other = (
            sum(float((left[name] * right[name]).sum()) for name in names)
            for left, right in ((plain, compiled), (plain, plain), (compiled, compiled))
        )
        cosines.append(dot / (one * other) ** 0.5)
    return Check.at_least("gradients, compiled to plain layers, cosine", min(cosines), 0.99)


def _gradients(training: Training, chunk: LoadedChunk) -> dict[str, Tensor]:
    planned = PlannedStep(0, chunk.keys.num_pairs, 1, chunk.packed.pictures is not None, 0.0, 1)
    training.engine.step(planned, iter([chunk]))
    named = training.accelerator.unwrap_model(training.model).named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def _vectors_and_loss(
    model: Any, chunk: LoadedChunk, run: TrainingRun, device: torch.device, autocast: torch.dtype | None
) -> tuple[Tensor, float]:
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        vectors = model(chunk.packed.to(device))
    pairs = split_vectors(vectors, chunk.keys.to(device))
    losses = compute_losses(pairs, pairs, run.recipe.objective, num_step_pairs=pairs.num_pairs)
    return vectors.float().cpu(), float(losses.total)


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = (part.detach().flatten().double() for part in (one, other))
    return float(torch.cosine_similarity(one, other, dim=0))


def _lowest(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double()).min())
