"""Folders of this machine, as globs go through them."""

import os
from pathlib import PurePath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from vipolyqwen_core.corpus.storage import StorageError, why


class LocalFolders(LocalFileSystem):
    """Local files, of which a glob leaves out no folder.

    fsspec takes a link to a folder for a file, and passes over a folder that cannot be listed: a part of a
    corpus would be missing, and nobody told. A link to a folder that it lies in is not followed.

    Raises:
        StorageError: a folder cannot be listed
    """

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        """What a folder holds, and what its links lead to."""
        try:
            infos = super().ls(path, detail=True)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{path} cannot be listed: {why(error)}") from error
        infos = [self._followed(info) if info["islink"] else info for info in infos]
        infos = [info for info in infos if not _is_loop(info)]
        return infos if detail else [info["name"] for info in infos]

    def _followed(self, link: dict[str, Any]) -> dict[str, Any]:
        """What a link leads to; where that is nothing, a file: reading it tells the ledger why."""
        try:
            found: dict[str, Any] = self.info(link["name"])
            return found
        except OSError:
            return {**link, "type": "file", "size": 0, "mtime": ""}


def _is_loop(info: dict[str, Any]) -> bool:
    """Whether it is a link to a folder that it lies in."""
    if not info["islink"] or info["type"] != "directory":
        return False
    return any(os.path.samefile(info["name"], folder) for folder in PurePath(info["name"]).parents)
