"""Whether picture files have changed since they were read: by their versions, not their bytes."""

from hashlib import blake2b
from pathlib import Path

import polars as pl

from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError

ABSENT = "absent"
UNREADABLE = "unreadable"
"""Stands for a file whose version the storage does not tell at present: once it does, the digest moves."""


def paths_digest(root: ImageRoot, paths: Path) -> str:
    """Hash of the version of every picture file that a table names; empty where there is no table.

    Args:
        paths: a Parquet file with a column `path`, below the root
    """
    if not paths.is_file() or root.root is None:
        return ""
    root.forget()
    digest = blake2b(digest_size=16)
    for batch in pl.scan_parquet(paths).collect_batches(chunk_size=50_000):
        for path in batch["path"]:
            digest.update(f"{path}\0{_version(root, path)}\0".encode())
    return digest.hexdigest()


def _version(root: ImageRoot, path: str) -> str:
    try:
        return root.version(path)
    except PictureError as error:
        return UNREADABLE if error.rule == "unreadable_image" else ABSENT
