"""Storages other than local files: what they raise, patience with them, and their files.

A storage that fails says nothing about a file. So it is asked again, and in the end the reading ends: no
ledger may say for good that a file is broken which could not be fetched today.
"""

import io
import logging
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar

from fsspec import AbstractFileSystem, filesystem
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from vipolyqwen_core.corpus.without_secrets import text_without_secrets, without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 4
LONGEST_WAIT = 4.0
"""Seconds between two attempts."""
HTTP_ABSENT = (404, 410)
HTTP_LOGIN = (401, 403, 407)
OBJECT_STORAGE_LOGIN = (400, 401, 403)
"""400, too: so S3 answers a token that has expired; to a question without content it says no more."""
CREDENTIALS = "; are the credentials right, not expired, and may they read and list it?"
ARCHIVES = ("zip", "tar")
"""Archives whose files have URLs, as `zip://a.jsonl::https://host/a.zip`."""
PIECE_BYTES = 1024 * 1024
"""What is read ahead of a file that lies elsewhere."""
SILENCE_SECONDS = 60.0
"""What a web server may take to connect, or to send the next bytes."""
REMOTE_ERRORS: tuple[type[Exception], ...] = (Exception,)
"""What other storages raise: aiohttp's errors, those of cloud libraries, of packing in an archive, and of
whatever else is installed for fsspec. They share no base class, and one file must not end what reads many."""
CONTENT_FIELDS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id", "sha", "CRC")
"""What storages say of a content: S3, Azure and HTTP; Google; HTTP; Hugging Face; GitHub; ZIP."""
TIME_FIELDS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modificationTime")
"""When a content was written: local files, SFTP and Google; S3; Azure; HTTP; Google; HDFS."""
VERSION_FIELDS = (*CONTENT_FIELDS, *TIME_FIELDS, "modify", "created")
"""The first that a storage tells is taken. `modify` is FTP's; `created` stands for a storage in memory."""


class StorageError(Exception):
    """A storage did not give the bytes of a file. No `OSError`: those are taken for damage of the file."""


class ChangedMeanwhile(StorageError):
    """The file is another one than when it was opened."""


def may_pass(error: BaseException | None) -> bool:
    """Whether a storage did not answer or asks to wait, rather than that it refused or sent rubbish.

    What ends in a `StorageError` was asked for again already.
    """
    while error is not None and not isinstance(error, StorageError):
        status = getattr(error, "status", None)
        status = status if isinstance(status, int) else _object_storage_status(error)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("aiohttp"):
            return True
        error = error.__cause__
    return False


def _object_storage_status(error: BaseException) -> int | None:
    """The status of an answer of S3, as botocore's errors carry it."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    status = told.get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _say(state: RetryCallState) -> None:
    """Tell which file is asked for again, and why: with a server that is silent, minutes pass."""
    asked = next(place for place in reversed(state.args) if isinstance(place, str | RemoteFile))
    error = None if state.outcome is None else state.outcome.exception()
    path = without_secrets(asked if isinstance(asked, str) else asked.path)
    logger.warning(
        "attempt %d of %d to read %s failed (%s)", state.attempt_number, ATTEMPTS, path, error and why(error)
    )


patiently = retry(
    retry=retry_if_exception(may_pass),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_random_exponential(max=LONGEST_WAIT),
    before_sleep=_say,
    reraise=True,
)
"""Lets a function ask a storage again while it may yet answer. It takes a path, or is a `RemoteFile`'s."""


def open_storage(location: str) -> tuple[AbstractFileSystem, str]:
    """The storage that a path or URL names, and the path of the file there.

    Of a web server the silence is limited. aiohttp limits the whole answer instead, to 5 minutes: too long
    for a server that is silent, too short for a large file. An archive elsewhere is read as any file there.

    Raises:
        StorageError: an archive cannot be fetched
    """
    name, _, holder = location.partition("::")
    protocol = name.partition("://")[0]
    if holder and protocol in ARCHIVES:
        fs, path = open_storage(holder)
        if not isinstance(fs, LocalFileSystem):
            archive = filesystem(protocol, fo=RemoteFile(fs, path))
            return archive, archive._strip_protocol(name if "://" in name else "")
    protocols = {split_protocol(part)[0] for part in location.split("::")}.intersection(("http", "https"))
    if not protocols:
        return url_to_fs(location)  # type: ignore[no-any-return]
    from aiohttp import ClientTimeout  # fsspec asks for it only where something is fetched over HTTP

    limits = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return url_to_fs(location, **{name: {"timeout": limits} for name in protocols})  # type: ignore[no-any-return]


def told_version(info: Mapping[str, Any]) -> str | None:
    """What a storage says of a file that changes when its content does; None: no mark of it, and no time."""
    return next((str(info[field]) for field in VERSION_FIELDS if info.get(field) is not None), None)


def is_web(fs: AbstractFileSystem) -> bool:
    """Whether a storage is a web server."""
    return "http" in fs.protocol


def is_no_answer(fs: AbstractFileSystem, error: FileNotFoundError) -> bool:
    """Whether a server failed: over HTTP fsspec calls a file missing whatever went wrong."""
    cause = error.__cause__
    return is_web(fs) and cause is not None and getattr(cause, "status", None) not in HTTP_ABSENT


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


@patiently
def find_places(fs: AbstractFileSystem, pattern: str) -> list[str]:
    """The places in a storage that a glob names."""
    return list(fs.glob(pattern))


@patiently
def is_folder(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a storage has a folder of that name.

    Of an object storage `isdir` lists the whole folder, and keeps the list: with a hundred thousand pictures
    each later question goes through all of it.
    """
    if is_web(fs):  # where every address is a file, too
        return bool(fs.isdir(path))
    try:
        return bool(fs.info(path)["type"] == "directory")
    except FileNotFoundError:
        return False


def why(error: BaseException) -> str:
    """An error in a few words: those of its cause where it has none, or says that a file is missing."""
    is_vague = isinstance(error, FileNotFoundError) or not str(error)
    told = error.__cause__ if error.__cause__ is not None and is_vague else error
    status = getattr(told, "status", None)
    if status == 0:  # aiohttp's, with an empty message
        return "the server sends from one address to the next without end"
    if isinstance(status, int):
        login = "; if it wants a login, download the files and name their paths" * (status in HTTP_LOGIN)
        return " ".join(f"the server answered {status} {getattr(told, 'message', '')}".split()) + login
    if isinstance(told, FileNotFoundError) and told.errno is None:  # with the path alone for a message
        return "there is no such file"
    said = text_without_secrets(" ".join(str(told).split()))[:200] or type(told).__name__
    return said + CREDENTIALS * (_object_storage_status(error.__cause__ or error) in OBJECT_STORAGE_LOGIN)


def open_file(fs: AbstractFileSystem, path: str) -> IO[bytes]:
    """The bytes of a file as it lies there.

    Raises:
        OSError: it cannot be opened
        StorageError: also when read: it lies elsewhere and cannot be fetched
    """
    if isinstance(fs, LocalFileSystem | AbstractArchiveFileSystem):
        return fs.open(path, "rb")  # type: ignore[no-any-return]
    return io.BufferedReader(RemoteFile(fs, path), PIECE_BYTES)


class RemoteFile(AbstractBufferedFile):
    """A file of another storage, fetched in parts; each is asked for again while the storage may yet answer.

    Where a server gives no parts of a file, or does not tell its size, the whole of it is fetched to where
    temporary files lie.

    Raises:
        StorageError: from any method: the storage does not give the bytes
    """

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self.fs, self.path = fs, path
        self._shown = without_secrets(path)
        self._whole: IO[bytes] | None = None
        self._version: str | None = None
        """As it was opened, where the storage tells it."""
        super().__init__(fs, path, size=self._ask(self._num_bytes))

    def close(self) -> None:
        """Let go of what was fetched."""
        if self._whole is not None:
            self._whole.close()
        super().close()

    def _fetch_range(self, start: int, end: int) -> bytes:
        is_one_answer = self._whole is not None  # then its parts are of one file, whatever lies there now
        part = self._ask(self._part, start, end)
        if len(part) != end - start:  # or a file that was cut meanwhile would seem to end there
            raise ChangedMeanwhile(f"{self._shown} is shorter than it was: {self.size} bytes")
        # or parts of two files would mix
        if not is_one_answer and self._version is not None and self._ask(self._told) != self._version:
            raise ChangedMeanwhile(f"{self._shown} was replaced while it was read; start again")
        return part

    def _ask(self, question: Callable[..., T], *arguments: int) -> T:
        try:
            return question(*arguments)
        except REMOTE_ERRORS as error:
            raise StorageError(f"{self._shown} cannot be fetched: {why(error)}") from error

    @patiently
    def _num_bytes(self) -> int:
        info = self.fs.info(self.path)
        if not is_web(self.fs):  # whose servers may each have a mark of their own for one file
            self._version = told_version(info)
        size = info["size"]
        return size or self._fetched().seek(0, io.SEEK_END)  # some answer HEAD with a length of 0

    @patiently
    def _told(self) -> str | None:
        return told_version(self.fs.info(self.path))

    @patiently
    def _part(self, start: int, end: int) -> bytes:
        if self._whole is None:
            try:
                with self.fs.open(self.path, "rb", cache_type="none") as part:
                    part.seek(start)
                    return part.read(end - start)  # type: ignore[no-any-return]
            except ValueError:  # fsspec's word for a server that gives no parts of a file
                pass
        whole = self._fetched()
        whole.seek(start)
        return whole.read(end - start)

    def _fetched(self) -> IO[bytes]:
        if self._whole is None:
            whole = tempfile.TemporaryFile()  # noqa: SIM115
            self.fs.get_file(self.path, whole)
            self._whole = whole
        return self._whole
