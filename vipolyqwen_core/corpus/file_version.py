"""The version of a file in any storage: what changes when its content does."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from fsspec import AbstractFileSystem

from vipolyqwen_core.corpus.storage import open_file, told_version

BLOCK_BYTES = 1 << 20


def file_version(fs: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> str:
    """What the storage says of the content of a file, or of the time when it was written.

    fsspec's own `ukey` does not do: over HTTP it is the URL alone, and in S3 it differs between a file that
    was listed and one that was asked for. A storage that tells neither has its bytes read: slow, and right.

    Args:
        info: of the file, as `fs.info` gives it
    """
    told = told_version(info)
    return content_version(fs, path) if told is None else told


def content_version(fs: AbstractFileSystem, path: str) -> str:
    """Hash of the bytes of a file.

    Raises:
        OSError, StorageError: it cannot be read
    """
    digest = blake2b(digest_size=16)
    with open_file(fs, path) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
