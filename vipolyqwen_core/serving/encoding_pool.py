"""Encoding on all GPUs of a machine: a process and an embedder each; without a second GPU, in this process.

The sides travel as their places in the training set, and each process reads texts and pictures itself: only
requests go out and only vectors come back.
"""

import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import Final

import torch

from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.process_ties import end_with_caller
from vipolyqwen_core.serving.encoder import Vectors, ViPolyQwenEmbedder
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides
from vipolyqwen_core.watched_pool import WatchedPool

AHEAD: Final = 2
"""Blocks that each process is given at once, so that none waits for the next."""


def encoding_devices() -> tuple[str, ...]:
    """All GPUs that this process may use, or the CPU."""
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)


class EncodingPool:
    """Embedders of one model on several devices. Nothing starts before the first block; close it."""

    def __init__(self, model: Path, settings: ExportSettings, devices: Sequence[str] | None = None) -> None:
        self.model, self.settings = model, settings
        self.devices = tuple(devices or encoding_devices())
        self._embedder: ViPolyQwenEmbedder | None = None
        self._processes: WatchedPool | None = None

    def __enter__(self) -> "EncodingPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f"one of the {len(self.devices)} processes that encode, one a GPU, ended without a word: its "
                "own error stands above, unless the system killed it, which happens where memory is short. "
                "What was encoded is kept: run the same again"
            ) from error

    @property
    def most_pending(self) -> int:
        """Blocks that should be in flight, so that all devices are at work."""
        return AHEAD * len(self.devices) if len(self.devices) > 1 else 0

    def submit(self, sides: StoredSides, requests: Sequence[SideRequest]) -> "Future[Vectors]":
        """The vectors of some sides, [N, D], when they are there.

        An error of a worker comes with the result. Where a worker is killed the block of `with` ends.

        Raises:
            ChildProcessError: at the end of that block: a worker was killed, or did not start
        """
        if len(self.devices) > 1:
            self._processes = self._processes or self._started()
            return self._processes.submit(_encode, sides, requests, self.settings.batch_tokens)
        self._embedder = self._embedder or _load(self.model, self.devices[0], self.settings)
        done: Future[Vectors] = Future()
        done.set_result(_vectors(self._embedder, sides, requests, self.settings.batch_tokens))
        return done

    def _started(self) -> WatchedPool:
        context = multiprocessing.get_context("spawn")  # neither CUDA nor Lance survives a fork
        devices: SimpleQueue[str] = context.SimpleQueue()
        for device in self.devices:
            devices.put(device)
        threads = max(1, torch.get_num_threads() // len(self.devices))
        worker = (self.model, devices, self.settings, threads)
        return WatchedPool(len(self.devices), context, initializer=_start, initargs=worker)


_embedder: ViPolyQwenEmbedder
"""In a worker: that of its device."""


def _load(model: Path, device: str, settings: ExportSettings) -> ViPolyQwenEmbedder:
    return ViPolyQwenEmbedder.from_pretrained(model, device, compile_layers=settings.compile_layers)


def _start(model: Path, devices: "SimpleQueue[str]", settings: ExportSettings, threads: int) -> None:
    """Make a process a worker with a device of its own: it leaves Ctrl-C to its caller and ends with it."""
    global _embedder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_caller()
    torch.set_num_threads(threads)
    _embedder = _load(model, devices.get(), settings)


def _encode(sides: StoredSides, requests: Sequence[SideRequest], batch_tokens: int) -> Vectors:
    return _vectors(_embedder, sides, requests, batch_tokens)


def _vectors(
    embedder: ViPolyQwenEmbedder, sides: StoredSides, requests: Sequence[SideRequest], batch_tokens: int
) -> Vectors:
    return embedder.encode_items(sides.late_items(requests, embedder.processor.shrink), batch_tokens)
