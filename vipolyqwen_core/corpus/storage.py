"""Storages other than local files: what they raise, patience with them, and their files as streams.

A storage that fails says nothing about a file. So it is asked again, and in the end the reading ends: no
ledger may say for good that a file is broken which could not be fetched today.
"""

import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, TypeVar

from fsspec import AbstractFileSystem
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

T = TypeVar("T")
ATTEMPTS = 4
LONGEST_WAIT = 4.0
"""Seconds between two attempts."""
HTTP_ABSENT = (404, 410)
REMOTE_ERRORS: tuple[type[Exception], ...] = (Exception,)
"""What other storages raise: aiohttp's errors, those of cloud libraries, of packing in an archive, and of
whatever else is installed for fsspec. They share no base class, and one file must not end what reads many."""


class StorageError(Exception):
    """A storage did not give the bytes of a file. No `OSError`: those are taken for damage of the file."""


def may_pass(error: BaseException | None) -> bool:
    """Whether a storage did not answer or asks to wait, rather than that it refused or sent rubbish."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status in (408, 429) or status >= 500
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("aiohttp"):
            return True
        error = error.__cause__
    return False


patiently = retry(
    retry=retry_if_exception(may_pass),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_random_exponential(max=LONGEST_WAIT),
    reraise=True,
)
"""Lets a function ask a storage again while it may yet answer."""


def is_no_answer(fs: AbstractFileSystem, error: FileNotFoundError) -> bool:
    """Whether a server failed: over HTTP fsspec calls a file missing whatever went wrong."""
    cause = error.__cause__
    return "http" in fs.protocol and cause is not None and getattr(cause, "status", None) not in HTTP_ABSENT


@patiently
def find_file(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What a storage tells of a file; None: there is none."""
    try:
        found: dict[str, Any] = fs.info(path)
        return found
    except FileNotFoundError as error:
        if is_no_answer(fs, error):
            raise
        return None


def why(error: BaseException) -> str:
    """An error in a few words; a file that is missing is none where something else was the cause."""
    told = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return " ".join(str(told).split())[:200] or type(told).__name__


class FarStream(io.RawIOBase):
    """The bytes of a file of another storage.

    A server that gives no parts of a file has the whole of it fetched first, to where temporary files lie.
    """

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        super().__init__()
        self._fs, self._path = fs, path
        self._place = 0
        self._stream: IO[bytes] | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, if need be by fetching the whole."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Bytes of the file; fewer than there is room for, where the storage gives fewer at once.

        Raises:
            StorageError: the storage does not give them
        """
        room = memoryview(buffer).cast("B")
        data = self._ask(lambda stream: stream.read(len(room)))
        room[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place.

        Raises:
            StorageError: the storage does not answer
        """

        def go(stream: IO[bytes]) -> int:
            stream.seek(offset, whence)
            return stream.tell()

        self._place = self._ask(go)
        return self._place

    def close(self) -> None:
        """Let go of the storage."""
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _ask(self, use: Callable[[IO[bytes]], T]) -> T:
        try:
            return self._use(use)  # type: ignore[return-value]  # tenacity loses the type
        except REMOTE_ERRORS as error:
            raise StorageError(f"{self._path} cannot be fetched: {why(error)}") from error

    @patiently
    def _use(self, use: Callable[[IO[bytes]], T]) -> T:
        try:
            if self._stream is None:
                self._stream = self._fs.open(self._path, "rb")
                self._stream.seek(self._place)
            try:
                return use(self._stream)
            except ValueError:  # fsspec's word for a server that gives no parts of a file
                self._stream.close()
                self._stream = self._fetched()
                self._stream.seek(self._place)
                return use(self._stream)
        except REMOTE_ERRORS:
            if self._stream is not None:
                with suppress(*REMOTE_ERRORS):
                    self._stream.close()
            self._stream = None  # what broke off may end early, as if it were whole
            raise

    def _fetched(self) -> IO[bytes]:
        whole = tempfile.TemporaryFile()  # noqa: SIM115
        self._fs.get_file(self._path, whole)
        return whole
