"""Training with step negatives, beside sentence-transformers 6.2 with its cached loss: pairs a second.

Both sides start from the same random Qwen2-VL weights with mean pooling and the same projection, take the
same pairs in each step and compute the same symmetric InfoNCE over all pairs of the step; the losses of the
first step are compared, so that it is the same work. AdamW, clipping and the threads are the same too.

Ours is the engine as a run has it: pairs by row from a training set on disk, pictures decoded and cut in the
training process, chunks by budget, the cached gradients of the step. sentence-transformers has
`CachedMultipleNegativesRankingLoss` in a bare loop that favours it: texts and decoded pictures lie in memory,
and nothing is logged or saved. It has its best mini-batch of `MINI_BATCHES`, each tried on the same pairs.
Each side of each kind of pairs has a process of its own; they take turns, and the medians are compared.

Lengths of texts spread as those of real corpora do (log-normal); half of the mixed pairs have a picture, of
many sizes. Useful tokens: of those that the language model computes, the share that belongs to an item.
"""

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.peer import build_peer
from tests.core.training.training_files import WrittenPair, write_training_files
from vipolyqwen_core.config import (
    BatchSettings,
    Distribution,
    ModelSettings,
    Negatives,
    ObjectiveSettings,
    OptimizerSettings,
    Pooling,
    Precision,
    ProcessingSettings,
    Recipe,
    Term,
    TrainingRun,
    TrainingSettings,
)
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo import demo_texts
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.model.tiny import build_tiny_backbone
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.training.meter import Meter
from vipolyqwen_core.training.optimizer import build_optimizer
from vipolyqwen_core.training.plan import plan_training, read_plan_index
from vipolyqwen_core.training.schedule import planned_steps
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.train import chunk_stream

KINDS: Final = ("text", "mixed")
MINI_BATCHES: Final = (8, 16, 32, 64)
TRIES: Final = 2
"""Of each mini-batch; the faster one counts."""
ROUNDS: Final = 5
STEPS_OF_ROUND: Final = 1
PAIRS_OF_STEP: Final = 96
NUM_PAIRS: Final = 4 * PAIRS_OF_STEP
PROCESSING: Final = ProcessingSettings(min_pixels=28 * 28, max_pixels=256 * 28 * 28, max_tokens=1024)


def recipe() -> Recipe:
    """Symmetric InfoNCE over the whole step, without prefixes: what the peer does."""
    return Recipe(
        name="benchmark",
        backbone="tiny",
        model=ModelSettings(pooling=Pooling.MEAN, embedding_dim=128),
        processing=PROCESSING,
        objective=ObjectiveSettings(
            term_weights={Term.COSINE: 0.0, Term.TRIPLET_MARGIN: 0.0}, cross_task_negatives=True
        ),
        batches=BatchSettings(
            pairs_per_step=PAIRS_OF_STEP,
            chunk_tokens=4096,
            chunk_patches=8192,
            negatives=Negatives.STEP,
            prefix_dropout=1.0,
        ),
        optimizer=OptimizerSettings(learning_rate=1e-4),
        training=TrainingSettings(
            epochs=20,
            precision=Precision.FLOAT32,
            distribution=Distribution.NONE,
            processes=1,
            loader_workers=0,
            activation_checkpointing=False,
        ),
    )


def made_pairs(kind: str) -> tuple[list[WrittenPair], list[Image.Image]]:
    """Pairs of texts, every one of its own; of the mixed ones every second has a picture."""
    chance = random.Random(0)
    words = " ".join(sorted(demo_texts())).split()
    pictures: list[Image.Image] = []

    def text(number: int) -> str:
        count = min(400, max(1, round(chance.lognormvariate(3.3, 0.9))))
        start = chance.randrange(len(words) - count)
        return f"{number} " + " ".join(words[start : start + count])

    def picture() -> Image.Image:
        width, height = (round(chance.lognormvariate(5.3, 0.5)) for _ in range(2))
        noise = np.random.default_rng(len(pictures)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((max(32, min(width, 900)), max(32, min(height, 900))))

    pairs = []
    for number in range(NUM_PAIRS):
        query, target = text(number), text(number)
        if kind == "mixed" and number % 2:
            pairs.append(WrittenPair(Task.OCR, f"<image>{query}", target, (len(pictures),)))
            pictures.append(picture())
        else:
            pairs.append(WrittenPair(Task.INSTR, query, target))
    return pairs, pictures


class Side(Protocol):
    """One of the two."""

    def steps(self, count: int, mini_batch: int) -> float:
        """Train on the next steps of the plan; returns the loss of the last."""

    def useful(self) -> float:
        """Share of useful tokens in what the last order computed."""


class Ours:
    """The engine of a training run."""

    def __init__(self, run: TrainingRun, kind: str) -> None:
        self.training = prepare(run)
        self.meter = Meter(self.training.counter)
        self.planned = planned_steps(self.training.plan, run.recipe, 0, 1)
        self.stream = self.meter.watch(chunk_stream(self.training, 0))

    def steps(self, count: int, mini_batch: int) -> float:
        self.meter.restart()
        loss = float("nan")
        for _ in range(count):
            planned = next(self.planned)
            assert planned.num_chunks > 1, "the step must be larger than a chunk, or nothing is cached"
            self.meter.begin(planned)
            loss = float(self.training.engine.step(planned, self.stream).loss)
        return loss

    def useful(self) -> float:
        return self.meter.throughput.metrics(1, None)["useful_token_share"]


class Peer:
    """sentence-transformers in a bare loop."""

    def __init__(self, run: TrainingRun, kind: str) -> None:
        settings = run.recipe
        ours = ViPolyQwenModel.from_backbone(run.backbone, settings.model, PROCESSING, settings.training.seed)
        self.model = build_peer(run.backbone, PROCESSING, ours.projection)
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        self.max_grad_norm = settings.optimizer.max_grad_norm
        self.pairs, self.pictures = made_pairs(kind)
        index = read_plan_index(run.training_set / "index.parquet")
        plan = plan_training(index, settings.batches, {}, settings.training.seed, settings.training.epochs)
        self.rows = (rows for _, _, rows in plan.steps())
        self.last_rows: np.ndarray
        self.seen = self.computed = 0
        self.model[0].register_forward_pre_hook(self._count)

    def _count(self, _: Any, arguments: tuple[Any, ...]) -> None:
        mask = arguments[0]["attention_mask"]
        self.seen += int(mask.sum())
        self.computed += mask.numel()

    def steps(self, count: int, mini_batch: int) -> float:
        self.seen = self.computed = 0
        loss = float("nan")
        for _ in range(count):
            self.last_rows = next(self.rows)
            loss = self.again(mini_batch)
        return loss

    def again(self, mini_batch: int) -> float:
        """Train on the pairs of the last step once more."""
        self.model.train()
        pairs = [self.pairs[row] for row in self.last_rows]
        sides = [self._query(pair) for pair in pairs], [pair.target for pair in pairs]
        features = [self.model.preprocess(side) for side in sides]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._losses[mini_batch](features, torch.empty(0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return float(loss.detach())

    def useful(self) -> float:
        return self.seen / self.computed

    def _query(self, pair: WrittenPair) -> Any:
        if not pair.pictures:
            return pair.query
        text = pair.query.removeprefix("<image>")
        return {"text": text, "image": self.pictures[pair.pictures[0]]}

    @cached_property
    def _losses(self) -> dict[int, Any]:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        return {
            size: CachedMultipleNegativesRankingLoss(
                self.model,
                scale=1 / recipe().objective.temperature,
                directions=("query_to_doc", "doc_to_query"),
                partition_mode="per_direction",
                mini_batch_size=size,
            )
            for size in MINI_BATCHES
        }


def serve(side: Callable[[TrainingRun, str], Side], run: TrainingRun, kind: str, line: Connection) -> None:
    """One side in a process of its own: answers orders with seconds and loss until told to stop."""
    worker = side(run, kind)
    line.send(None)
    while (order := line.recv()) is not None:
        if order == "useful":
            line.send(worker.useful())
        else:
            what, *arguments = order
            started = time.perf_counter()
            loss = getattr(worker, what)(*arguments)
            line.send((time.perf_counter() - started, loss))


@contextmanager
def process(
    side: Callable[[TrainingRun, str], Side], run: TrainingRun, kind: str
) -> Iterator[Callable[[Any], Any]]:
    """A side at work; the function sends it an order and waits for the answer.

    It sees no GPU: this is a comparison on processors, and the GPU script has that on a GPU.
    """
    context = multiprocessing.get_context("spawn")
    line, far_end = context.Pipe()
    worker = context.Process(target=serve, args=(side, run, kind, far_end), daemon=True)
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        worker.start()
    far_end.close()
    line.recv()

    def order(what: Any) -> Any:
        line.send(what)
        return line.recv()

    try:
        yield order
    finally:
        line.send(None)
        worker.join()


def compare(kind: str, backbone: Path, folder: Path) -> list[str]:
    """The rows of one kind of pairs."""
    pairs, pictures = made_pairs(kind)
    processor = ViPolyQwenProcessor.from_backbone(backbone, PROCESSING)
    training_set = write_training_files(folder / kind, processor, pictures, pairs)
    run = TrainingRun(
        recipe=recipe(), backbone=backbone, training_set=training_set, output=folder / f"run_{kind}"
    )
    with process(Ours, run, kind) as ours, process(Peer, run, kind) as peer:
        first = ours(("steps", 1, 0))[1], peer(("steps", 1, MINI_BATCHES[-1]))[1]
        assert abs(first[0] - first[1]) < 1e-3 * first[1], f"{kind}: the losses differ: {first}"
        tried = [(peer(("again", size))[0], size) for _ in range(TRIES) for size in MINI_BATCHES]
        _, best = min(tried)
        for side, mini_batch in ((ours, 0), (peer, best)):  # a round before the clock runs
            side(("steps", 1, mini_batch))
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(ROUNDS):
            seconds["ours"].append(ours(("steps", STEPS_OF_ROUND, 0))[0])
            seconds["peer"].append(peer(("steps", STEPS_OF_ROUND, best))[0])
        useful = ours("useful"), peer("useful")
    count = STEPS_OF_ROUND * PAIRS_OF_STEP
    rates = [count / median(seconds[side]) for side in ("ours", "peer")]
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["ours"], seconds["peer"], strict=True))
    return [
        f"| {kind} | ours | {rates[0]:.1f} | **{rates[0] / rates[1]:.2f}** "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {useful[0]:.1%} | {first[0]:.5f} |",
        f"| | sentence-transformers, mini-batches of {best} | {rates[1]:.1f} | 1 | {useful[1]:.1%} | "
        f"{first[1]:.5f} |",
    ]


def run() -> list[str]:
    """Pairs a second, share of useful tokens and loss of the first step, texts and mixed pairs apart."""
    with tempfile.TemporaryDirectory() as name:
        backbone = build_tiny_backbone(Path(name) / "backbone", demo_texts())
        rows = [row for kind in KINDS for row in compare(kind, backbone, Path(name))]
    batches = recipe().batches
    return [
        f"On the processor: steps of {PAIRS_OF_STEP} pairs, {torch.get_num_threads()} threads, float32. "
        f"Ours: chunks of at most {batches.chunk_tokens:,} tokens and {batches.chunk_patches:,} patches.",
        "",
        "| pairs | side | pairs/s | ratio (of the rounds) | useful tokens | loss of the first step |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
