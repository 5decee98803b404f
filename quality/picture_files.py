"""Whether picture files have changed since they were read: by their versions, not their bytes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path

import polars as pl

from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.tables import is_whole

BATCH_PATHS = 10_000
ASKED_AT_ONCE = 32
"""Files elsewhere whose versions are asked for at once: one by one, 100,000 answers of S3 take an hour."""
ABSENT = "absent"
UNREADABLE = "unreadable"
"""Stands for a file whose version the storage does not tell at present: once it does, the digest moves."""


def paths_digest(root: ImageRoot, paths: Path) -> str:
    """Hash of the version of every picture file that a table names; empty where it is gone or was cut.

    Args:
        paths: a Parquet file with a column `path`, below the root
    """
    if not is_whole(paths) or root.root is None:
        return ""
    root.forget()
    batches = pl.scan_parquet(paths).select("path").collect_batches(chunk_size=BATCH_PATHS)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        ask: Callable[..., Iterator[str]] = map if root.is_local else threads.map
        return _digest(
            line
            for batch in batches
            for line in zip(batch["path"], ask(partial(picture_version, root), batch["path"]), strict=True)
        )


def read_digest(root: ImageRoot, paths: Path) -> str:
    """The same of the versions that were read, which the table says: a file may have changed since.

    Args:
        paths: a Parquet file with columns `path` and `version`
    """
    if root.root is None:
        return ""
    batches = pl.scan_parquet(paths).select("path", "version").collect_batches(chunk_size=BATCH_PATHS)
    return _digest(line for batch in batches for line in batch.iter_rows())


def _digest(versions: Iterable[tuple[str, str]]) -> str:
    digest = blake2b(digest_size=16)
    for path, version in versions:
        digest.update(f"{path}\0{version}\0".encode())
    return digest.hexdigest()


def picture_version(root: ImageRoot, path: str) -> str:
    """What changes when a picture's file does, comes or goes."""
    try:
        return root.version(path)
    except PictureError as error:
        return UNREADABLE if error.rule == "unreadable_image" else ABSENT
