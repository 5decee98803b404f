"""Folders of other storages, as globs go through them."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.cached import CachingFileSystem

from vipolyqwen_core.corpus.storage import StorageError, patiently, why


def remote_folders(fs: AbstractFileSystem) -> AbstractFileSystem:
    """The same storage, of which a glob leaves out no folder, and which remembers no listing of earlier.

    fsspec passes over a folder for which the storage is busy, refuses or breaks off: a part of a corpus would
    be missing, and nobody told. What this one lists, `fs` itself does not keep: what is asked of that later
    is told as it is then. An archive, whose list is whole, is itself.

    Raises:
        StorageError: when used: the storage does not tell what a folder holds
    """
    if isinstance(fs, AbstractArchiveFileSystem):
        return fs
    while isinstance(fs, CachingFileSystem):  # it has what it does not hold listed by the storage behind
        fs = fs.fs
    kind: Any = type(fs)
    whole: AbstractFileSystem = _whole(kind)(*fs.storage_args, **fs.storage_options)
    whole.invalidate_cache()
    return whole


@cache
def _whole(kind: Any) -> Any:
    """A kind of storage, whose folders raise what no glob takes for an empty folder."""

    async def _ls(self: AsyncFileSystem, path: str, detail: bool = True, **settings: Any) -> list[Any]:
        try:
            return await _listed_by(kind._ls, path, self, detail, settings)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unlisted(path, error) from error

    def ls(self: AbstractFileSystem, path: str, detail: bool = True, **settings: Any) -> list[Any]:
        try:
            return _listed(kind.ls, path, self, detail, settings)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unlisted(path, error) from error

    own: dict[str, Any] = {"_ls": _ls} if issubclass(kind, AsyncFileSystem) else {"ls": ls}
    return type(f"Whole{kind.__name__}", (kind,), own)


def _unlisted(path: str, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be listed: {why(error)}")


@patiently
async def _listed_by(
    ls: Callable[..., Awaitable[list[Any]]], path: str, fs: Any, detail: bool, settings: dict[str, Any]
) -> list[Any]:
    return await ls(fs, path, detail=detail, **settings)


@patiently
def _listed(
    ls: Callable[..., list[Any]], path: str, fs: Any, detail: bool, settings: dict[str, Any]
) -> list[Any]:
    return ls(fs, path, detail=detail, **settings)
