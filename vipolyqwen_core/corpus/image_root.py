"""The folder or archive that holds the pictures of a source, local or a URL; nothing else is read."""

import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import TypeVar

from fsspec import AbstractFileSystem
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.zip import ZipFileSystem

from vipolyqwen_core.corpus.archive_member import read_member
from vipolyqwen_core.corpus.file_version import file_version
from vipolyqwen_core.corpus.manifest import unfilled
from vipolyqwen_core.corpus.names_on_disk import forms_on_disk, unicode_forms
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.storage import (
    REMOTE_ERRORS,
    find_file,
    is_folder,
    is_no_answer,
    open_storage,
    why,
)
from vipolyqwen_core.corpus.text import compose, writable
from vipolyqwen_core.corpus.without_secrets import without_secrets

T = TypeVar("T")
MAX_PICTURE_BYTES = 512 * 1024 * 1024
"""Larger files are no pictures of a corpus."""
MAX_PATH_CHARS = 4096
"""Longer ones are no paths: a picture in base64, say."""
LOCAL_ERRORS: tuple[type[Exception], ...] = (OSError, UnicodeEncodeError, RuntimeError)
"""What a local folder raises where a file cannot be read: no permission, a long name, links in a circle."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ABSOLUTE = re.compile(r"[A-Za-z]:|/")


class ImageRoot:
    """Reads pictures by their paths below one folder, or in one archive."""

    def __init__(self, root: str | None) -> None:
        """Settle the folder; None: the source names no folder, and every path is refused.

        Raises:
            ValueError: there is no such folder and no such archive, or the storage does not answer
        """
        self.root = root
        self._named = ""
        self.is_local = False
        """Whether it is a folder of this machine."""
        if root is None:
            return
        told = without_secrets(root)
        try:
            self._fs, path = open_storage(root)
            if isinstance(self._fs, LocalFileSystem):
                root = path = next(filter(os.path.exists, forms_on_disk(path)), path)
            if path.lower().endswith(".zip") and _is_file(self._fs, path):
                self._fs, path = open_storage(f"zip://::{root}")
            self.is_local = isinstance(self._fs, LocalFileSystem)
            # the files of a tar share one position in it; those of a ZIP know theirs
            self._turn: AbstractContextManager[object] = (
                nullcontext() if isinstance(self._fs, ZipFileSystem) else Lock()
            )
            self._folder = str(Path(path).resolve()) if self.is_local else path.rstrip("/")
            found = is_folder(self._fs, self._folder)
        except REMOTE_ERRORS as error:
            raise ValueError(f"image root {told} cannot be opened: {why(error)}") from error
        if not found:
            raise ValueError(f"image root {told} is no folder and no ZIP archive{unfilled(root)}")
        self._named = path.rstrip("/")
        self._errors = LOCAL_ERRORS if self.is_local else REMOTE_ERRORS

    def locate(self, path: str) -> str:
        """The path below the root, with slashes and without `.` or inner `..`.

        A path may climb out and come back by the root's own name: `../Data/x.png` below the root `Data`.

        Raises:
            PictureError: with rule `path_leaves_root` for an absolute path, a URL or one that climbs out of
                the root, `missing_image` for an empty one, `unreadable_image` for one that is no Unicode or
                no path at all
        """
        if not path.strip() or "\0" in path:
            raise PictureError("missing_image", "the path of the picture is empty")
        if len(path) > MAX_PATH_CHARS or path.startswith("data:"):
            raise PictureError("unreadable_image", f"{len(path)} characters that are no path of a picture")
        if writable(path) != path:
            raise PictureError("unreadable_image", "the path of the picture cannot be written as UTF-8")
        if (reason := below_no_root(path)) is not None:
            raise PictureError("path_leaves_root", reason)
        below = posixpath.normpath(_slashed(path))
        if below.startswith("../") and self._named:
            named = compose(self._named)
            below = posixpath.relpath(posixpath.join(named, compose(below)), named)
        if below == ".." or below.startswith("../"):
            raise PictureError("path_leaves_root", "the path of the picture leaves the image root")
        return below

    def read(self, path: str) -> bytes:
        """The bytes of a picture. Names are found in either Unicode form, and with backslashes in them.

        Archives from Windows hold such names, and so do folders that they were unpacked to elsewhere. `check`
        it before: another storage than a folder or an archive is not asked for the size once more.

        Raises:
            PictureError: with rule `path_leaves_root`, `missing_image`, `no_image_root`, `too_many_bytes`
                or `unreadable_image`
        """
        return self._found(path, self._read_local if self.is_local else self._read_remote)

    def local_file(self, path: str) -> Path | None:
        """The file of a picture, for whoever reads it; None where the root is elsewhere, or an archive.

        Raises:
            PictureError: as `read` does
        """
        return self._found(path, self._local_place) if self.is_local else None

    def check(self, path: str) -> int:
        """The size in bytes of a picture that is not read: what `read` refuses is refused.

        Raises:
            PictureError: as `read` does
        """
        return self._found(path, self._local_size if self.is_local else self._remote_size)

    def version(self, path: str) -> str:
        """What changes when the file does; the picture is not read where the storage tells it.

        Raises:
            PictureError: as `read` does, but for files that are too large and links out of the root
        """
        return self._found(path, self._version)

    def forget(self) -> None:
        """Ask the storage anew from now on; some remember what they listed as long as the process lives."""
        if self.root is not None:
            self._fs.invalidate_cache()

    def _found(self, path: str, use: Callable[[str], T]) -> T:
        below = self.locate(path)
        if self.root is None:
            raise PictureError("no_image_root", "the source names no image_root that the path lies below")
        for form in self._forms(below):
            try:
                return use(form)
            except (PictureError, MemoryError):
                raise
            except self._errors as error:
                if isinstance(error, FileNotFoundError) and not is_no_answer(self._fs, error):
                    continue
                raise PictureError("unreadable_image", f"the picture cannot be read: {why(error)}") from error
        raise PictureError("missing_image", "there is no such file below the image root")

    def _forms(self, below: str) -> Iterator[str]:
        """The spellings under which a picture may lie below the root, itself first."""
        for spelled in dict.fromkeys((below, below.replace("/", "\\"))):
            yield from forms_on_disk(spelled, self._folder) if self.is_local else unicode_forms(spelled)

    def _version(self, below: str) -> str:
        place = f"{self._folder}/{below}"
        info = self._fs.info(place)
        return f"{info.get('size')} {file_version(self._fs, place, info)}"

    def _local_place(self, below: str) -> Path:
        place = Path(self._folder, below).resolve()
        if not place.is_relative_to(self._folder):  # a symbolic link
            raise PictureError("path_leaves_root", "the path of the picture leaves the image root by a link")
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be read for ever
            raise PictureError("unreadable_image", "the picture cannot be read: it is no regular file")
        _checked(status.st_size)
        return place

    def _local_size(self, below: str) -> int:
        return self._local_place(below).stat().st_size

    def _read_local(self, below: str) -> bytes:
        return self._local_place(below).read_bytes()

    def _remote_size(self, below: str) -> int:
        return _checked(self._fs.size(f"{self._folder}/{below}") or 0)

    def _read_remote(self, below: str) -> bytes:
        place = f"{self._folder}/{below}"
        if isinstance(self._fs, AbstractArchiveFileSystem):
            num_bytes = self._remote_size(below)
            with self._turn, self._fs.open(place, "rb") as member:
                return read_member(member, num_bytes)
        data = bytes(self._fs.cat_file(place))
        _checked(len(data))
        return data


def _checked(num_bytes: int) -> int:
    if num_bytes > MAX_PICTURE_BYTES:
        raise PictureError("too_many_bytes", f"{num_bytes} bytes, limit {MAX_PICTURE_BYTES}")
    return num_bytes


def below_no_root(path: str) -> str | None:
    """Why the path of a picture lies below no root at all; None where it may lie below one."""
    if _URL.match(_slashed(path)):
        return "the picture is named by a URL, which is never fetched: download it and name its path"
    if _ABSOLUTE.match(_slashed(path)):
        return "the path of the picture is absolute: name it from image_root on"
    return None


def _slashed(path: str) -> str:
    return path.strip().replace("\\", "/")


def _is_file(fs: AbstractFileSystem, path: str) -> bool:
    info = find_file(fs, path)
    return info is not None and info["type"] == "file"
