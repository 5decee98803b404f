"""Processes that verify and hash pictures.

Threads would share one interpreter lock, which packing pixels for the hash and much else holds, and one
crash: a decoder that a broken file brings down takes its process with it. Here that is a worker, and the file
is found and rejected.

Local files are read by the workers, and once more by the caller where they stay as they are: bytes through a
pipe cost a tenth of the time, the second reading a hundredth. A checksum tells that it was the same file.
What comes from elsewhere is read by the caller, so that a worker needs no storage and no archive's list of
files.

Memory: in the caller the files that came from elsewhere, `BYTES_AHEAD` at most, or one of them, as many more
while they are fetched, and what messages carry; in each worker one picture, of which only one at a time may
be larger than `LARGE_PIXELS`. Large pictures that had to be written anew come back as files.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Lock
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import xxhash

from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.perceptual_hash import perceptual_hash
from vipolyqwen_core.corpus.pictures import PictureError, decode_picture, store_picture, taking_turns
from vipolyqwen_core.freed_memory import keep_freed_memory
from vipolyqwen_core.grouped import grouped
from vipolyqwen_core.process_ties import end_with_caller
from vipolyqwen_core.usable_cores import usable_cores
from vipolyqwen_core.watched_pool import WatchedPool

GROUP_PICTURES = 8
"""Pictures a message to a worker: one by one, messages cost a tenth of the time."""
GROUP_BYTES = 4 * 1024 * 1024
"""Bytes of files that a message to a worker carries, before it is closed."""
RETURNED_BYTES = 256 * 1024
"""Larger files come back on disk; so a message back is at most `GROUP_PICTURES` times as long."""
GROUPS_AHEAD = 4
"""Groups in flight for each worker, so that none waits while a batch of the image store is written."""
BYTES_AHEAD = 256 * 1024 * 1024
"""Bytes of files in flight that came from elsewhere."""
LARGE_PIXELS = 16_000_000
"""Larger pictures take turns: at 4 bytes a pixel and some copies, those of many processes would fill the
memory."""

KEPT_BYTES = 256 * 1024 * 1024
"""What a worker keeps of the memory of a picture for the next one: fresh pages take as long as decoding."""
MOST_WORKERS = 61
"""Windows cannot wait for more."""
CRASHED = "decoder_crashed"
"""Rule of a picture that ended the process which decoded it."""


DIED = "died of it"
ROOM_BYTES = 256 * 1024 * 1024
"""Where a process gets no more than this, a decoder's error may be want of memory in other words."""


class MemoryShortageError(ChildProcessError):
    """Memory is short for a picture, which is no fault of it."""


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

    def __init__(
        self, max_image_pixels: int, scratch: Path | None = None, num_workers: int | None = None
    ) -> None:
        """Nothing starts yet.

        Args:
            max_image_pixels: larger pictures are refused
            scratch: a folder for files that wait for the caller, else the system's, which may be memory
            num_workers: one for each core that this process may use, where none is named
        """
        self.max_image_pixels = max_image_pixels
        self.num_workers = num_workers or min(usable_cores(), MOST_WORKERS)
        self._executor: WatchedPool | None = None
        self._lone: WatchedPool | None = None
        self._scratch = TemporaryDirectory(prefix="pictures_", dir=scratch, ignore_cleanup_errors=True)
        self._closed = False

    def load(self, pictures: Iterable[UnreadPicture]) -> Iterator[LoadedPicture]:
        """What the pictures hold, in their order; an error stays what it is.

        Raises:
            RuntimeError: the processes do not start, or the pool was closed
            ChildProcessError: the system lets no more of them start
            MemoryShortageError: instead of a picture
        """
        ahead: deque[tuple[Group, Future[list[LoadedPicture]]]] = deque()
        num_bytes = 0
        try:
            for group in _groups(pictures):
                num_bytes += _given_bytes(group)
                while ahead and (len(ahead) == GROUPS_AHEAD * self.num_workers or num_bytes > BYTES_AHEAD):
                    first, future = ahead.popleft()
                    yield from self._results(first, future)
                    num_bytes -= _given_bytes(first)
                ahead.append((group, self._submit(group)))
            while ahead:
                yield from self._results(*ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the processes. Whoever still takes pictures gets an error."""
        self._closed = True
        for executor in (self._executor, self._lone):
            if executor is not None:
                executor.shutdown(cancel_futures=True)
        self._scratch.cleanup()

    def _started(self, number: int) -> WatchedPool:
        if self._closed:
            raise RuntimeError("the pool of processes for pictures was closed")
        return _processes(number, Path(self._scratch.name).resolve())

    def _submit(self, group: Group) -> "Future[list[LoadedPicture]]":
        self._executor = self._executor or self._started(self.num_workers)
        try:
            return self._executor.submit(_load, group, self.max_image_pixels)
        except BrokenProcessPool:
            self._executor = self._started(self.num_workers)
            return self._executor.submit(_load, group, self.max_image_pixels)

    def _results(self, group: Group, future: "Future[list[LoadedPicture]]") -> Iterator[LoadedPicture]:
        try:
            loaded = iter(future.result())
        except (BrokenProcessPool, MemoryError):  # at which picture, nobody says; the others died with it
            loaded = (self._load_alone(picture) for picture in group)
        return map(self._with_bytes, group, loaded)

    def _load_alone(self, picture: UnreadPicture) -> LoadedPicture:
        """The picture in a process of its own; two that die of it, the second a new one, prove its fault.

        Not where memory was short: a picture that is rejected stays rejected.

        Raises:
            MemoryShortageError: one was killed, or was given no more memory
        """
        ends = []
        for _ in range(2):
            lone = self._lone = self._lone or self._started(1)
            try:
                return lone.submit(_load, [picture], self.max_image_pixels).result()[0]
            except BrokenProcessPool:
                ends.append("was killed" if lone.was_killed() else DIED)
            except MemoryError:
                lone.shutdown()
                ends.append("was given too little memory")
            self._lone = None
        first, second = ends
        if (first, second) != (DIED, DIED):
            raise MemoryShortageError(
                f"the process that decoded it {first}, a second one {second}: they want memory, or pictures "
                "with fewer pixels (curation.max_image_pixels)"
            )
        return LoadedPicture(
            None, PictureError(CRASHED, "the process that decoded the picture died of it, twice")
        )

    def _with_bytes(self, picture: UnreadPicture, result: LoadedPicture) -> LoadedPicture:
        """The result with the file that it describes, where a worker left it out or on disk."""
        if result.image is None or isinstance(result.image["bytes"], bytes):
            return result
        if isinstance(written := result.image["bytes"], Path):
            data: bytes | PictureError = written.read_bytes()
            written.unlink()
            return result._replace(image={**result.image, "bytes": data})
        data = _bytes_of(picture)
        if isinstance(data, PictureError):  # a moment ago it was there
            return LoadedPicture(None, data)
        if xxhash.xxh3_64_intdigest(data) != result.checksum:
            return self._with_bytes(data, self._load_alone(data))
        return result._replace(image={**result.image, "bytes": data})


def _groups(pictures: Iterable[UnreadPicture]) -> Iterator[Group]:
    given = (lambda picture: _given_bytes([picture]), GROUP_BYTES)
    return grouped(pictures, (lambda _: 1, GROUP_PICTURES), given)


def _given_bytes(group: Group) -> int:
    return sum(len(picture) for picture in group if isinstance(picture, bytes))


def _bytes_of(picture: UnreadPicture) -> bytes | PictureError:
    if not isinstance(picture, Path):
        return picture
    try:
        return picture.read_bytes()
    except OSError as error:
        return PictureError("unreadable_image", f"the picture cannot be read: {error}")


def _processes(number: int, scratch: Path) -> WatchedPool:
    """Workers forked from a server that has imported what they need, or spawned where there is no fork.

    This process is never forked: Lance and Polars would not survive it.

    Raises:
        RuntimeError: they do not start at all, which says nothing of any picture
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([__name__, "scipy.fftpack"])  # which imagehash imports when it is used
    executor = WatchedPool(number, context, initializer=_start, initargs=(context.Lock(), scratch))
    try:
        executor.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the processes that decode pictures do not start. If their errors above name no other reason: a "
            "script that curates needs its calls below `if __name__ == '__main__':`, and a file of its own"
        ) from error
    return executor


_large_pictures: Lock
"""In a worker: held while a large picture is in memory."""
_scratch: Path
"""In a worker: where large files for the caller go."""


def _start(large_pictures: Lock, scratch: Path) -> None:
    """Make a process a worker: it leaves Ctrl-C to its caller and ends with it."""
    global _large_pictures, _scratch
    _large_pictures, _scratch = large_pictures, scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_caller()
    keep_freed_memory(KEPT_BYTES)


def _load(group: Group, max_image_pixels: int) -> list[LoadedPicture]:
    return [_load_picture(_bytes_of(picture), max_image_pixels) for picture in group]


def _load_picture(data: bytes | PictureError, max_image_pixels: int) -> LoadedPicture:
    """The row of a picture. Its `bytes` are None where they are `data`, which the caller has, or a path.

    Raises:
        MemoryError: memory is short, in whatever words a decoder says so
    """
    if isinstance(data, PictureError):
        return LoadedPicture(None, data)
    try:
        with taking_turns(LARGE_PIXELS, _large_pictures) as wait_for_turn:
            picture = decode_picture(data, max_image_pixels, before_loading=wait_for_turn)
            stored = store_picture(data, picture)
            row = {
                "image_id": image_id(picture.image),
                "bytes": None if stored.bytes == data else _handed_over(stored.bytes),
                "format": stored.format,
                "width": picture.width,
                "height": picture.height,
                "phash": perceptual_hash(picture.image),
                "reencoded": stored.reencoded,
            }
    except PictureError as error:
        if error.rule in ("broken_image", "truncated_image"):
            np.empty(ROOM_BYTES, dtype=np.uint8)  # raises where there is no room; takes none otherwise
        return LoadedPicture(None, error)
    return LoadedPicture(row, None, xxhash.xxh3_64_intdigest(data))


def _handed_over(data: bytes) -> bytes | Path:
    if len(data) <= RETURNED_BYTES:
        return data
    with NamedTemporaryFile(dir=_scratch, delete=False) as file:
        file.write(data)
    return Path(file.name)
