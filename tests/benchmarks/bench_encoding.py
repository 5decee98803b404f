"""Encoding, beside sentence-transformers 6.2: items a second on the same weights, with equal vectors.

Both sides run Qwen2-VL with the same random weights, mean pooling and the same projection, on the same items:
texts whose lengths spread as those of real corpora do (log-normal), pictures of many sizes, decoded already.
Each side of each kind of items has a process of its own, which keeps its model; they take turns, and the
ratio is the median of those of the rounds. sentence-transformers sorts by length and pads to the longest of a
batch; it runs with its default batch size, with its best of `BATCH_SIZES` and with its best of those that are
smaller still, which waste least on so small a model; ours with its default, and once more with compiled
layers. On a GPU both are bfloat16, in the shape of Qwen2-VL-2B, and batches larger, since small ones leave it
idle; on a CPU float32, and a smaller shape. Ratios are given by the clock and by seconds of the processor,
all threads together, which others on the machine disturb less.

Useful tokens: of those that the language model computes, the share that belongs to an item. Peak memory: of
the process in one encoding, libraries and model included; on a GPU as torch counts it.
"""

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.benchmarks.peer import build_peer
from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.corpus.demo import demo_texts
from vipolyqwen_core.model.compilation import compile_layers
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.model.tiny import build_tiny_backbone
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

DEVICE: Final = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE: Final = torch.bfloat16 if DEVICE == "cuda" else torch.float32
ALIKE: Final = 0.99 if DEVICE == "cuda" else 0.99999
"""Least cosine of the two vectors of an item, in the precision of the device: behind 28 layers in bfloat16
the worst of thousands of items differs by what either side rounds (seen: 0.9961)."""
DEFAULT_BATCH_SIZE: Final = 32
"""That of sentence-transformers."""
BATCH_SIZES: Final = (8, 16, DEFAULT_BATCH_SIZE, 64) if DEVICE == "cpu" else (16, DEFAULT_BATCH_SIZE, 64, 128)
SMALLER_BATCH_SIZES: Final = (1, 2, 4) if DEVICE == "cpu" else ()
TRIED: Final = 3
"""The best batch size is found on every third item."""
ROUNDS: Final = 3
THREADS: Final = 1
"""Of torch, on both sides: with more, threads that wait for each other blur figures on a shared machine."""
COUNTS: Final = {"text": 512, "mixed": 96} if DEVICE == "cpu" else {"text": 2048, "mixed": 512}
"""Items of each kind."""
PROCESSING: Final = ProcessingSettings(min_pixels=28 * 28, max_pixels=256 * 28 * 28, max_tokens=2048)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Widths and depths of a Qwen2-VL; its heads are 128 wide in the language model of the large one."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vision_width: int
    vision_layers: int
    vision_heads: int

    @property
    def described(self) -> str:
        """For the head of the table."""
        return (
            f"hidden size {self.hidden}, {self.layers} layers; "
            f"vision {self.vision_width}, {self.vision_layers} layers"
        )


SHAPE: Final = (
    Shape(256, 768, 6, 8, 2, 192, 4, 6) if DEVICE == "cpu" else Shape(1536, 8960, 28, 12, 2, 1280, 32, 16)
)


def build_backbone(directory: Path) -> Path:
    """The tiny backbone, its files and tokenizer, with random weights of `SHAPE`."""
    build_tiny_backbone(directory, demo_texts())
    content = Qwen2VLConfig.from_pretrained(directory).to_dict()
    half = SHAPE.hidden // SHAPE.heads // 2
    content["text_config"] |= {
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.intermediate,
        "num_hidden_layers": SHAPE.layers,
        "layer_types": ["full_attention"] * SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.key_value_heads,
        "initializer_range": 0.04,
    }
    content["text_config"]["rope_parameters"]["mrope_section"] = [half // 4, half * 3 // 8, half * 3 // 8]
    content["vision_config"] |= {
        "embed_dim": SHAPE.vision_width,
        "depth": SHAPE.vision_layers,
        "num_heads": SHAPE.vision_heads,
        "hidden_size": SHAPE.hidden,
    }
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(content)).to(DTYPE).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Sample:
    """What both sides encode."""

    text: str | None
    pictures: tuple[Image.Image, ...]


@cache
def samples(kind: str) -> tuple[Sample, ...]:
    """`text`: texts alone. `mixed`: as many texts, pictures with a text, and a few with several pictures."""
    chance = random.Random(0)
    words = " ".join(sorted(demo_texts())).split()

    def text() -> str:
        count = min(600, max(1, round(chance.lognormvariate(3.3, 1.0))))
        start = chance.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    def picture() -> Image.Image:
        width, height = (round(chance.lognormvariate(5.6, 0.5)) for _ in range(2))
        noise = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((max(32, min(width, 1200)), max(32, min(height, 1200))))

    made = []
    for _ in range(COUNTS[kind]):
        lot = chance.random() if kind == "mixed" else 0.0
        if lot < 0.4:
            made.append(Sample(text(), ()))
        elif lot < 0.8:
            made.append(Sample(text(), (picture(),)))
        elif lot < 0.9:
            made.append(Sample(None, (picture(),)))
        else:
            made.append(Sample(text(), tuple(picture() for _ in range(chance.randint(2, 4)))))
    return tuple(made)


class Ours:
    """The embedder."""

    compiled = False

    def __init__(self, backbone: Path, kind: str) -> None:
        model = new_model(backbone)
        if self.compiled:
            compile_layers(model)
        processor = ViPolyQwenProcessor.from_backbone(backbone, PROCESSING)
        self.embedder = ViPolyQwenEmbedder(model, processor, DEVICE)
        self.texts = [sample.text for sample in samples(kind)]
        self.pictures = [list(sample.pictures) or None for sample in samples(kind)]
        self.useful = self.computed = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, _: Any, arguments: tuple[Any, ...]) -> None:
        """What is packed has no other tokens."""
        self.useful += sum(arguments[0].segments.lengths)
        self.computed += arguments[0].num_tokens

    def encode(self, batch_size: int | None, step: int = 1) -> Vectors:
        """Vectors of every item, or of every `step`-th."""
        return self.embedder.encode(self.texts[::step], images=self.pictures[::step], batch_size=batch_size)


class Compiled(Ours):
    """The embedder with compiled layers."""

    compiled = True


class Peer:
    """sentence-transformers."""

    def __init__(self, backbone: Path, kind: str) -> None:
        self.peer = build_peer(backbone, PROCESSING, new_model(backbone).projection, DEVICE, DTYPE)
        self.inputs = [_input(sample) for sample in samples(kind)]
        self.useful = self.computed = 0
        self.peer[0].register_forward_pre_hook(self._count)

    def _count(self, _: Any, arguments: tuple[Any, ...]) -> None:
        """The rest is padding."""
        mask = arguments[0]["attention_mask"]
        self.useful += int(mask.sum())
        self.computed += mask.numel()

    def encode(self, batch_size: int | None, step: int = 1) -> Vectors:
        """Vectors of every item, or of every `step`-th."""
        assert batch_size is not None
        return np.asarray(
            self.peer.encode(self.inputs[::step], batch_size=batch_size, show_progress_bar=False)
        )


def _input(sample: Sample) -> Any:
    """A sample in the form of sentence-transformers."""
    pictures = list(sample.pictures)
    image = pictures[0] if len(pictures) == 1 else pictures
    if sample.text is None:
        return image
    return {"text": sample.text, "image": image} if pictures else sample.text


def new_model(backbone: Path) -> ViPolyQwenModel:
    """The model of both sides; the peer takes its projection."""
    settings = ModelSettings(pooling=Pooling.MEAN, embedding_dim=SHAPE.hidden)
    return ViPolyQwenModel.from_backbone(backbone, settings, PROCESSING, dtype=DTYPE)


def forget_peak_memory() -> None:
    """Let the peak count from now on. A process inherits that of its parent, who may have measured before."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of this process at most, model included, or of the GPU, since `forget_peak_memory`."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


@dataclass(frozen=True)
class Timed:
    """One encoding."""

    seconds: float
    """By the clock."""
    processor_seconds: float
    """Of all threads of the process."""
    vectors: Vectors
    useful: float
    """Share of useful tokens."""
    peak_bytes: int
    """As `peak_memory` counts."""


def serve(side: type[Ours] | type[Peer], backbone: Path, kind: str, line: Connection) -> None:
    """One side in a process of its own: encodes on demand until told to stop."""
    torch.set_num_threads(THREADS)
    worker = side(backbone, kind)
    if side is not Peer:
        worker.encode(None, 1)  # the first call prepares much: kernels for batches as they will come
    else:
        worker.encode(DEFAULT_BATCH_SIZE, TRIED)
    line.send(None)
    while (order := line.recv()) is not None:
        worker.useful = worker.computed = 0
        forget_peak_memory()
        started = time.perf_counter(), time.process_time()
        try:
            vectors = worker.encode(*order)
        except torch.OutOfMemoryError:
            line.send(None)
            torch.cuda.empty_cache()
            continue
        seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        line.send(Timed(*seconds, vectors, worker.useful / worker.computed, peak_memory()))


@contextmanager
def process(
    side: type[Ours] | type[Peer], backbone: Path, kind: str
) -> Iterator[Callable[[int | None, int], Timed | None]]:
    """A side at work; the function encodes with a batch size, every item or every few; None: no memory."""
    context = multiprocessing.get_context("spawn")
    line, far_end = context.Pipe()
    worker = context.Process(target=serve, args=(side, backbone, kind, far_end), daemon=True)
    worker.start()
    far_end.close()
    line.recv()

    def encode(batch_size: int | None, step: int) -> Timed | None:
        line.send((batch_size, step))
        timed: Timed | None = line.recv()
        return timed

    try:
        yield encode
    finally:
        with suppress(BrokenPipeError):  # it has failed, and said why
            line.send(None)
        worker.join()


def compare(kind: str, backbone: Path) -> tuple[list[str], float]:
    """The rows of one kind of items, and the least cosine of both vectors of an item."""
    with (
        process(Ours, backbone, kind) as ours,
        process(Compiled, backbone, kind) as compiled,
        process(Peer, backbone, kind) as peer,
    ):
        tried: dict[int, float] = {}
        for size in (*BATCH_SIZES, *SMALLER_BATCH_SIZES):
            timed = peer(size, TRIED)
            tried[size] = float("inf") if timed is None else timed.seconds
        sizes = {min(BATCH_SIZES, key=tried.__getitem__): "its best", DEFAULT_BATCH_SIZE: "its default"}
        if SMALLER_BATCH_SIZES:
            sizes = {min(SMALLER_BATCH_SIZES, key=tried.__getitem__): "the best below 8", **sizes}
        rounds = [
            (ours(None, 1), compiled(None, 1), {size: peer(size, 1) for size in sizes}) for _ in range(ROUNDS)
        ]
    plain, fused, others = zip(*rounds, strict=True)
    assert all((*plain, *fused)), f"{kind}: the device has no memory for the embedder's own batches"
    fitting = {size: chosen for size, chosen in sizes.items() if all(turn[size] for turn in others)}
    alike = [
        min(float((own[-1].vectors * others[-1][size].vectors).sum(1).min()) for size in fitting)
        for own in (plain, fused)
    ]
    rows = [
        _row([f"{kind}, {COUNTS[kind]} items", "ours"], plain, ["", ""], f"{alike[0]:.6f}"),
        _row(["", "ours, compiled"], fused, ["", ""], f"{alike[1]:.6f}"),
    ]
    for size, chosen in reversed(fitting.items()):
        theirs = [turn[size] for turn in others]
        name = f"sentence-transformers, batches of {size}, {chosen}"
        rows.append(_row(["", name], theirs, [_ratios(theirs, own) for own in (plain, fused)], ""))
    return rows, min(alike)


def _row(names: list[str], turns: Sequence[Timed], ratios: list[str], cosine: str) -> str:
    """A line of the table, from the encodings of a side, one a round."""
    rate = len(turns[0].vectors) / median(turn.seconds for turn in turns)
    last = turns[-1]
    cells = [*names, f"{rate:.1f}", *ratios, f"{last.useful:.1%}", f"{last.peak_bytes / 2**30:.2f}", cosine]
    return f"| {' | '.join(cells)} |"


def _ratios(theirs: Sequence[Timed], ours: Sequence[Timed]) -> str:
    """Our items a second over theirs, round by round: by the clock and, on a CPU, by its seconds."""
    pairs = list(zip(theirs, ours, strict=True))
    text = _spread([other.seconds / own.seconds for other, own in pairs])
    if DEVICE == "cpu":
        text += "; " + _spread([other.processor_seconds / own.processor_seconds for other, own in pairs])
    return text


def _spread(ratios: list[float]) -> str:
    return f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def run() -> list[str]:
    """Items a second, share of useful tokens and peak memory, texts and mixed items apart."""
    rows: list[str] = []
    differing: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = build_backbone(Path(folder))
        for kind in COUNTS:
            of_kind, alike = compare(kind, backbone)
            print("\n".join(of_kind), flush=True)  # what is measured is seen, whatever comes after it
            rows += of_kind
            differing += [f"{kind}: cosine {alike}"] if alike < ALIKE else []
    assert not differing, f"the vectors differ, at least {ALIKE} is needed: {', '.join(differing)}"
    return [
        f"{DEVICE}, {str(DTYPE).removeprefix('torch.')}, torch threads: {THREADS}; {SHAPE.described}. Ratios "
        "are our items a second over the peer's, by the clock; on a CPU by seconds of the processor besides.",
        "",
        "| items | side | items/s | ratio | ratio, compiled | useful tokens | peak GB | least cosine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
