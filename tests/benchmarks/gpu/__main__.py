"""The GPU script: one command, within 10 minutes, from a bare checkout. `make bench-gpu`

    python -m tests.benchmarks.gpu --output FOLDER          Qwen2-VL-2B's shapes, on one GPU
    python -m tests.benchmarks.gpu --smoke --output FOLDER  a tiny model by the same code, also on a CPU

Weights are random and pairs synthetic; `gpu.mix` states the mix. The training set is written in the real
format and goes the real way: plan, loader in worker processes, engine, optimizer. First it checks that the
device computes what the CPU computes; then it measures, for chunk and step negatives, with and without
activation checkpointing, with and without compiled layers: pairs/s, tokens/s, operations, their share of the
machine's measured bfloat16 matrix rate (what is computed twice counts once), peak memory, share of the time
waiting for data. Beside it stand the original way (every side padded to 8,192 tokens) and
sentence-transformers with its cached loss. A setting that does not fit says OOM, a part that fails leaves its
traceback, and the others go on; what no time is left for says so. Figures go to FOLDER/gpu.json and
FOLDER/gpu.md.

It needs torch, transformers, accelerate, pyarrow, pydantic, pillow and psutil. Without Lance, an Arrow file
takes its place; without FlashAttention, torch's own kernel. The peer needs sentence-transformers 6.2. What a
machine without network lacks travels as wheels in a folder: `pip install --no-index --no-deps --target SITE
FOLDER/*.whl`, then PYTHONPATH=SITE.
"""

import argparse
import gc
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.__main__ import commit, machine
from tests.benchmarks.gpu.arrow_for_lance import HAS_LANCE
from tests.benchmarks.gpu.checks import (
    check_attention,
    check_compiled,
    check_vectors,
    check_waiting,
    chunk_of_each_kind,
)
from tests.benchmarks.gpu.mix import build_backbone, write_mix
from tests.benchmarks.gpu.rates import Rates, measure_rates
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.scale import FULL, SMOKE, Scale
from tests.benchmarks.gpu.settings import (
    Setting,
    apply_setting,
    chunk_loader,
    fit_budget,
    measure_padded,
    measure_setting,
    tasks_of_mix,
)
from vipolyqwen_core.config import (
    BatchSettings,
    Distribution,
    Negatives,
    Precision,
    Recipe,
    TrainingRun,
    TrainingSettings,
)
from vipolyqwen_core.model.attention import fastest_kernel
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.training.setup import Training, prepare
from vipolyqwen_core.workspace import configure, current_workspace

PART_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    OSError,
    ArithmeticError,
)
"""What one part may end with while the others go on; the script then ends with status 1."""

SETTINGS = [
    Setting(negatives, checkpointing, compiled)
    for checkpointing in (False, True)
    for compiled in (True, False)
    for negatives in Negatives
]
"""In the order in which they matter: those that the goals are about first, if time is short."""

SETTING_SECONDS = 45.0
"""What must be left for one more setting..."""
PEER_SECONDS = 100.0
"""... besides what the peer takes at the end..."""
PEER_FIRST_SECONDS = 60.0
"""... and of that, for its first mini-batch."""


def main() -> None:
    """Run everything and end with status 1 where a check or a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, on whatever device there is")
    parser.add_argument("--only-compiled", action="store_true", help="no checks, plain layers, seed's way")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds that the whole may take")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("no CUDA device; --smoke runs the same code with a tiny model")
    configure(current_workspace())  # as a training does, before the first use of the GPU
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the tiny model is too small for threads to help
    report = Report(arguments.output, arguments.limit)
    with tempfile.TemporaryDirectory() as folder:
        scale = SMOKE if arguments.smoke else FULL
        measure(report, scale, Path(folder), plain=not arguments.only_compiled)
    print("\n" + "\n".join(report.markdown()), flush=True)
    if report.failed or not all(check.passed for check in report.checks):
        sys.exit(1)


def measure(report: Report, scale: Scale, folder: Path, plain: bool) -> None:
    """All parts, in the order in which they matter; the peer last, since it needs the memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report.fact(machine=machine(), commit=commit(), lance="Lance" if HAS_LANCE else "an Arrow file instead")
    if device.type == "cuda":
        report.fact(attention=fastest_kernel(torch.cuda.get_device_capability(device)[0]).__doc__)
    if not scale.at_full_size:
        report.note("A tiny model: its figures show that the script works, and nothing about the goals.")
    rates = measure_rates(device, scale.matmul)
    report.fact(
        matmul_tflops=round(rates.matmul_flops / 1e12, 3),
        sustained_matmul_tflops=round(rates.sustained_matmul_flops / 1e12, 3),
        copy_gb_per_second=round(rates.copy_bytes / 1e9, 1),
    )
    run = write_run(scale, folder, device)
    report.say("backbone and training set are written")
    training = prepare(run)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    report.fact(parameters=parameters, mix=tasks_of_mix(training), pairs_of_a_step=scale.pairs_per_step)
    if plain:
        check(report, training, run, scale)
    with part(report, "check of compiled layers"):
        apply_setting(training, Setting(Negatives.CHUNK, checkpointing=False, compiled=False))
        chunk = chunk_of_each_kind(training, chunk_loader(run), 2 * scale.checked_pairs)
        report.check(check_compiled(training, chunk))
    for setting in SETTINGS:
        if setting.compiled or plain:
            with part(report, setting.name):
                measure_one(report, training, run, setting, rates, scale)
    if plain:
        with part(report, "the original way"):
            padded(report, training, run, rates, scale)
    index = training.plan.index
    training.accelerator.free_memory()
    del training
    release()
    with part(report, "sentence-transformers"):
        peer(report, run, index, scale, device)


def write_run(scale: Scale, folder: Path, device: torch.device) -> TrainingRun:
    """Backbone and training set, written; the run that trains one on the other."""
    backbone = build_backbone(folder / "backbone", scale.at_full_size, device)
    release()
    processor = ViPolyQwenProcessor.from_backbone(backbone, scale.processing)
    training_set = write_mix(folder / "training_set", processor, scale.mix, scale.num_pairs)
    recipe = Recipe(
        name="gpu",
        backbone=str(backbone),
        model=scale.model,
        processing=scale.processing,
        batches=BatchSettings(pairs_per_step=scale.pairs_per_step, prefix_dropout=0.0),
        training=TrainingSettings(
            epochs=1,
            precision=Precision.BFLOAT16,
            distribution=Distribution.NONE,
            processes=1,
            loader_workers=min(scale.loader_workers, max((os.cpu_count() or 2) // 2, 1)),
            activation_checkpointing=False,
        ),
    )
    return TrainingRun(
        recipe=recipe, backbone=backbone, training_set=training_set, output=folder / "run", run_name="gpu"
    )


def check(report: Report, training: Training, run: TrainingRun, scale: Scale) -> None:
    """Is it right?"""
    loader = chunk_loader(run)
    with part(report, "check of attention"):
        for outcome in check_attention(training.accelerator.device):
            report.check(outcome)
    with part(report, "check of vectors"):
        for outcome in check_vectors(training, run, loader, scale):
            report.check(outcome)
    with part(report, "check of waiting"):
        apply_setting(training, Setting(Negatives.CHUNK, checkpointing=True, compiled=False))
        report.check(check_waiting(training, chunk_of_each_kind(training, loader, 2 * scale.checked_pairs)))


def measure_one(
    report: Report, training: Training, run: TrainingRun, setting: Setting, rates: Rates, scale: Scale
) -> None:
    """One row of the table; a budget that was too large is tried again at three quarters, then at half."""
    if report.seconds_left() < SETTING_SECONDS + PEER_SECONDS and scale.at_full_size:
        report.row(setting.name, {"outcome": f"left out: {report.seconds_left():.0f} s left"})
        return
    apply_setting(training, setting)
    budget, found = fit_budget(training, chunk_loader(run), scale)
    report.say(f"{setting.name}: chunks of {budget[0]} tokens, {budget[1]} patches; {found}")
    for quarters in (4, 3, 2):
        attempt = (budget[0] * quarters // 4, budget[1] * quarters // 4)
        figures = unless_out_of_memory(
            lambda size=attempt: measure_setting(training, run, setting, size, rates, scale)
        )
        if figures is not None:
            report.row(setting.name, {**figures, **found})
            return
        report.say(f"{setting.name}: OOM at {attempt}")
        training.optimizer.zero_grad(set_to_none=True)
        release()
    report.row(setting.name, {"outcome": "OOM"})


def padded(report: Report, training: Training, run: TrainingRun, rates: Rates, scale: Scale) -> None:
    """The original way, with as many of its 24 pairs as fit."""
    name = f"the original way: every side {scale.padded_tokens} tokens"
    apply_setting(training, Setting(Negatives.CHUNK, checkpointing=True, compiled=False))
    for num_pairs in scale.padded_pairs:
        figures = unless_out_of_memory(
            lambda count=num_pairs: measure_padded(training, chunk_loader(run), count, rates, scale)
        )
        if figures is not None:
            report.row(name, figures)
            report.note(
                f"{name}: measured on {num_pairs} pairs a step, texts alone, with checkpointing and this "
                "engine's kernels; operations count the padding."
            )
            return
        report.say(f"{name}: OOM at {num_pairs} pairs")
        training.optimizer.zero_grad(set_to_none=True)
        release()
    report.row(name, {"outcome": "OOM"})


def peer(report: Report, run: TrainingRun, index: Any, scale: Scale, device: torch.device) -> None:
    """sentence-transformers at its best mini-batch, or why not."""
    name = "sentence-transformers, cached loss"
    try:
        peer_step = importlib.import_module("tests.benchmarks.gpu.peer_step")
    except ImportError as error:
        report.row(name, {"outcome": "not installed"})
        report.note(f"{name}: {error}; bring sentence-transformers 6.2 as a wheel (see the script).")
        return
    subject = peer_step.Peer(run, chunk_loader(run), index, scale, device)
    best: dict[str, Any] | None = None
    for mini_batch in scale.peer_mini_batches:
        expected = 3 * scale.peer_pairs / best["pairs_per_second"] if best is not None else PEER_FIRST_SECONDS
        if report.seconds_left() < expected and scale.at_full_size:
            break
        figures = unless_out_of_memory(lambda size=mini_batch: peer_step.measure_peer(subject, size))
        report.say(f"{name}, mini-batch {mini_batch}: {figures or 'OOM'}")
        if figures and (best is None or figures["pairs_per_second"] > best["pairs_per_second"]):
            best = figures
        release()
    left_out = report.seconds_left() < PEER_FIRST_SECONDS and scale.at_full_size
    report.row(name, best or {"outcome": "left out: no time" if left_out else "OOM"})
    if best is not None:
        report.note(
            f"{name}: its best mini-batch, {best['mini_batch']}; {best['pairs_of_a_step']} pairs a step of "
            f"the same mix; {best['pairs_per_second_prepared']:.1f} pairs/s where its inputs lie ready."
        )


def unless_out_of_memory(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What the work gives; None where the device's memory does not hold it."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return None


@contextmanager
def part(report: Report, name: str) -> Iterator[None]:
    """A part whose failure is reported, and ends the script with status 1, but not the other parts."""
    try:
        yield
    except PART_ERRORS:
        report.failed.append(f"{name}:\n{traceback.format_exc()}")
        report.row(name, {"outcome": "failed"})
        print(report.failed[-1], flush=True)
    release()


def release() -> None:
    """Give back what no one holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
