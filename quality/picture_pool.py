"""Processes that verify and hash pictures.

Threads would share one interpreter lock, which packing pixels for the hash and much else holds, and one
crash: a decoder that a broken file brings down takes its process with it. Here that is a worker, and the file
is found and rejected.

Local files are read by the workers, and once more by the caller where they stay as they are: bytes through a
pipe cost a tenth of the time, the second reading a hundredth. A checksum tells that it was the same file.
What comes from elsewhere is read by the caller, so that a worker needs no storage and no archive's list of
files.

Memory: `BYTES_AHEAD` in the caller, in each worker `GROUP_BYTES` and one picture, of which only one at a time
may be larger than `LARGE_PIXELS`.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import wait
from multiprocessing.synchronize import Lock
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import xxhash

from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.perceptual_hash import perceptual_hash
from vipolyqwen_core.corpus.pictures import PictureError, decode_picture, store_picture

GROUP_PICTURES = 8
"""Pictures a message to a worker: one by one, messages cost a tenth of the time."""
GROUP_BYTES = 4 * 1024 * 1024
"""Bytes of files that a message carries, either way, before it is cut."""
GROUPS_AHEAD = 8
"""Groups in flight for each worker, so that none waits while a batch of the image store is written."""
BYTES_AHEAD = 256 * 1024 * 1024
"""Bytes of files that wait in the caller; those that workers are at come on top."""
LARGE_PIXELS = 16_000_000
"""Larger pictures take turns: at 4 bytes a pixel and some copies, many at once would fill the memory."""

CRASHED = "decoder_crashed"
"""Rule of a picture that ended the process which decoded it."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class LoadedPicture(NamedTuple):
    """A picture that was read, or why it was not."""

    image: dict[str, Any] | None
    """A row of IMAGE_STORE, without `origin`."""
    error: PictureError | None
    checksum: int | None = None
    """Of the file that the row describes."""


UnreadPicture = bytes | Path | PictureError
"""The bytes of a file, a local file, or why there is none."""
Group = Sequence[UnreadPicture]


class PicturePool:
    """A pool of processes, started at the first picture; a process that dies costs its picture alone.

    Close it: a process that was itself spawned does not end before its children.
    """

    def __init__(self, max_image_pixels: int, num_workers: int | None = None) -> None:
        """Nothing starts yet.

        Args:
            max_image_pixels: larger pictures are refused
            num_workers: one for each core that this process may use, where none is named
        """
        self.max_image_pixels = max_image_pixels
        self.num_workers = num_workers or _usable_cores()
        self._executor: ProcessPoolExecutor | None = None
        self._lone: ProcessPoolExecutor | None = None

    def load(self, pictures: Iterable[UnreadPicture]) -> Iterator[LoadedPicture]:
        """What the pictures hold, in their order; an error stays what it is."""
        ahead: deque[tuple[Group, Future[list[LoadedPicture]]]] = deque()

        def finish_first() -> Iterator[LoadedPicture]:
            group, future = ahead.popleft()
            loaded = self._results(group, future)
            if rest := group[len(loaded) :]:
                ahead.appendleft((rest, self._submit(rest)))
            for picture, result in zip(group, loaded, strict=False):
                yield self._with_bytes(picture, result)

        try:
            for group in _groups(pictures):
                while len(ahead) >= GROUPS_AHEAD * self.num_workers or _bytes_waiting(ahead) > BYTES_AHEAD:
                    yield from finish_first()
                ahead.append((group, self._submit(group)))
            while ahead:
                yield from finish_first()
        finally:
            for _, future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        for executor in (self._executor, self._lone):
            if executor is not None:
                executor.shutdown(cancel_futures=True)
        self._executor = self._lone = None

    def _submit(self, group: Group) -> "Future[list[LoadedPicture]]":
        self._executor = self._executor or _processes(self.num_workers)
        try:
            return self._executor.submit(_load, group, self.max_image_pixels)
        except BrokenProcessPool:
            self._executor = _processes(self.num_workers)
            return self._executor.submit(_load, group, self.max_image_pixels)

    def _results(self, group: Group, future: "Future[list[LoadedPicture]]") -> list[LoadedPicture]:
        try:
            return future.result()
        except BrokenProcessPool:  # of which picture, nobody says: some worker died, and the others with it
            return [self._load_alone(picture) for picture in group]

    def _load_alone(self, picture: UnreadPicture) -> LoadedPicture:
        """The picture in a process of its own, which tells whose fault a death was."""
        self._lone = self._lone or _processes(1)
        try:
            return self._lone.submit(_load, [picture], self.max_image_pixels).result()[0]
        except BrokenProcessPool:
            self._lone = None
            return LoadedPicture(
                None, PictureError(CRASHED, "the process that decoded the picture died of it")
            )

    def _with_bytes(self, picture: UnreadPicture, result: LoadedPicture) -> LoadedPicture:
        """The result with the file that it describes, where a worker left it out."""
        if result.image is None or result.image["bytes"] is not None:
            return result
        data = _read(picture)
        if isinstance(data, PictureError):  # a moment ago it was there
            return LoadedPicture(None, data)
        if xxhash.xxh3_64_intdigest(data) != result.checksum:
            return self._with_bytes(data, self._load_alone(data))
        return result._replace(image={**result.image, "bytes": data})


def _usable_cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _groups(pictures: Iterable[UnreadPicture]) -> Iterator[Group]:
    group: list[UnreadPicture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == GROUP_PICTURES or _given_bytes(group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _given_bytes(group: Group) -> int:
    return sum(len(picture) for picture in group if isinstance(picture, bytes))


def _returned_bytes(loaded: Iterable[LoadedPicture]) -> int:
    return sum(len(result.image["bytes"] or b"") for result in loaded if result.image is not None)


def _bytes_waiting(ahead: Iterable[tuple[Group, "Future[list[LoadedPicture]]"]]) -> int:
    return sum(
        _given_bytes(group)
        + (_returned_bytes(future.result()) if future.done() and future.exception() is None else 0)
        for group, future in ahead
    )


def _read(picture: UnreadPicture) -> bytes | PictureError:
    if not isinstance(picture, Path):
        return picture
    try:
        return picture.read_bytes()
    except OSError as error:
        return PictureError("unreadable_image", f"the picture cannot be read: {error}")


def _processes(number: int) -> ProcessPoolExecutor:
    """Workers forked from a server that has imported what they need, or spawned where there is no fork.

    This process is never forked: Lance and Polars would not survive it.

    Raises:
        RuntimeError: they do not start at all, which says nothing of any picture
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([__name__, "scipy.fftpack"])  # which imagehash imports when it is used
    executor = ProcessPoolExecutor(number, context, initializer=_start, initargs=(context.Lock(),))
    try:
        executor.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the processes that decode pictures do not start; a script that curates needs its calls below "
            "`if __name__ == '__main__':`, and a file of its own"
        ) from error
    return executor


_large_pictures: Lock
"""In a worker: held while a large picture is in memory."""


def _start(large_pictures: Lock) -> None:
    """Make a process a worker: it leaves Ctrl-C to its parent and ends with it."""
    global _large_pictures
    _large_pictures = large_pictures
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _keep_memory()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # it was killed, and nothing will ever come through the queues


def _keep_memory() -> None:
    """Let glibc keep what a picture leaves for the next one; elsewhere nothing happens.

    By default it maps blocks of this size anew each time, and touching fresh pages takes as long as decoding.
    32 MB is the largest threshold that it accepts.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 256 * 1024 * 1024)


def _load(group: Group, max_image_pixels: int) -> list[LoadedPicture]:
    """The pictures of a group up to the one whose bytes fill a message."""
    loaded: list[LoadedPicture] = []
    for picture in group:
        loaded.append(_load_picture(_read(picture), max_image_pixels))
        if _returned_bytes(loaded) >= GROUP_BYTES:
            break
    return loaded


def _load_picture(data: bytes | PictureError, max_image_pixels: int) -> LoadedPicture:
    """The row of a picture; its `bytes` are None where they are `data`, which the caller gets elsewhere."""
    if isinstance(data, PictureError):
        return LoadedPicture(None, data)
    with ExitStack() as turn:

        def wait_for_turn(num_pixels: int) -> None:
            if num_pixels > LARGE_PIXELS:
                turn.enter_context(_large_pictures)

        try:
            picture = decode_picture(data, max_image_pixels, before_loading=wait_for_turn)
        except PictureError as error:
            return LoadedPicture(None, error)
        stored = store_picture(data, picture)
        row = {
            "image_id": image_id(picture.image),
            "bytes": None if stored.bytes == data else stored.bytes,
            "format": stored.format,
            "width": picture.width,
            "height": picture.height,
            "phash": perceptual_hash(picture.image),
            "reencoded": stored.reencoded,
        }
    return LoadedPicture(row, None, xxhash.xxh3_64_intdigest(data))
