"""The content of files, unpacked where their names say that they are packed: `.gz .bz2 .xz .zst .zip`."""

import bz2
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
from fsspec.compression import compr
from fsspec.utils import infer_compression

from vipolyqwen_core.corpus.storage import PIECE_BYTES, open_file, open_storage
from vipolyqwen_core.corpus.without_secrets import without_secrets

OF_A_MAC = "__MACOSX/"
"""Where a Mac puts what it remembers of the files of an archive."""
Unpacker = bz2.BZ2Decompressor | lzma.LZMADecompressor
UNPACKERS: dict[str | None, Callable[[], Unpacker]] = {
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
}


def is_packed(name: str) -> bool:
    """Whether the last suffix of a name is that of a packer."""
    return infer_compression(name) is not None or _is_zstd(name)


def _is_zstd(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == ".zst"


@contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked.

    Raises:
        OSError: it cannot be opened, or it is a ZIP archive of several files
        StorageError: it lies elsewhere and cannot be fetched
    """
    fs, path = open_storage(location)
    name = without_secrets(path)
    packing = infer_compression(name)
    with open_file(fs, path) as file:
        if _is_zstd(name):  # fsspec needs one more package for it
            with pa.CompressedInputStream(file, "zstd") as stream:
                yield io.BufferedReader(stream)
        elif packing == "zip":
            with zipfile.ZipFile(file) as archive, _open_member(archive) as stream:
                yield stream
        elif packing in UNPACKERS:
            yield io.BufferedReader(UnpackedStreams(file, UNPACKERS[packing]))
        elif packing is not None:
            with compr[packing](file, mode="rb") as stream:
                yield stream
        else:
            yield file


@contextmanager
def _open_member(archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
    """The one file of a ZIP archive."""
    members = [
        member
        for member in archive.infolist()
        if not (member.is_dir() or member.filename.startswith(OF_A_MAC))
    ]
    if len(members) != 1:
        raise OSError(f"the archive holds {len(members)} files; one can be read, so unpack it")
    (member,) = members
    is_read_in_order = not member.filename.lower().endswith(".parquet")
    if member.compress_type != zipfile.ZIP_BZIP2 or not is_read_in_order:
        with archive.open(member) as stream:
            yield stream
        return
    packed = copy(member)  # zipfile would unpack all that a piece holds: of a kilobyte a gigabyte
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    packed.CRC = None  # type: ignore[assignment]  # bzip2 has one of its own
    with archive.open(packed) as stream:
        yield io.BufferedReader(UnpackedStreams(stream, UNPACKERS["bz2"]))


class UnpackedStreams(io.RawIOBase):
    """The content of a packed file of one stream, or of several as parallel packers write them.

    The readers of `bz2` and `lzma` take a later stream that is broken for the end of the file.

    Raises:
        OSError, EOFError, lzma.LZMAError: when read: a stream is broken, or breaks off
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Unpacker]) -> None:
        self._file, self._new = file, new
        self._unpacker: Unpacker | None = None

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or a part of it; 0 at the end."""
        data = b""
        while not data:
            packed = b""
            if self._unpacker is None or self._unpacker.eof:
                packed = self._start_of_stream()
                if not packed:
                    return 0
                self._unpacker = self._new()
            elif self._unpacker.needs_input:
                packed = self._file.read(PIECE_BYTES)
                if not packed:
                    raise EOFError("the packed file ends within a stream")
            data = self._unpacker.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _start_of_stream(self) -> bytes:
        """The first bytes of the next stream; none at the end. Zeros may fill up the one before."""
        if self._unpacker is None:
            return self._file.read(PIECE_BYTES)
        packed = self._unpacker.unused_data.lstrip(b"\0")
        while not packed and (piece := self._file.read(PIECE_BYTES)):
            packed = piece.lstrip(b"\0")
        return packed
