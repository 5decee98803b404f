"""The bytes of one file of an archive, in no more memory than the archive says that they take."""

import bz2
import zipfile
from typing import IO, Any

PIECE_BYTES = 16 * 1024
"""A piece of what is packed by LZMA may give 7,000 times as much at once."""


def read_member(member: IO[bytes], num_bytes: int) -> bytes:
    """All bytes of a file that an archive opened.

    A kilobyte of bzip2 may hold a gigabyte, whatever the archive's list of files says; zipfile unpacks all of
    it before it cuts it to that.

    Args:
        num_bytes: as the archive's list of files says
    Raises:
        zipfile.BadZipFile: there are more, or others
    """
    if isinstance(member, zipfile.ZipExtFile):
        packed: Any = member
        unpacker = getattr(packed, "_decompressor", None)  # private: without it the file takes more memory
        if isinstance(unpacker, bz2.BZ2Decompressor):
            packed._decompressor = _AtMost(unpacker, num_bytes)
    return b"".join(iter(lambda: member.read(PIECE_BYTES), b""))


class _AtMost:
    """An unpacker of bzip2 that gives no more than so many bytes at once."""

    def __init__(self, unpacker: bz2.BZ2Decompressor, num_bytes: int) -> None:
        self._unpacker, self._num_bytes = unpacker, num_bytes

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        return self._unpacker.eof

    def decompress(self, data: bytes) -> bytes:
        """What the packed bytes hold, cut."""
        return self._unpacker.decompress(data, self._num_bytes)
