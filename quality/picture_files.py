"""Whether picture files have changed since they were read: their sizes and times, not their bytes."""

from hashlib import blake2b
from pathlib import Path

import polars as pl

from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError

ABSENT = "absent"


def paths_digest(root: ImageRoot, paths: Path) -> str:
    """Hash of the state of every picture file that a table names; empty where there is no table.

    Args:
        paths: a Parquet file with a column `path`, below the root
    """
    if not paths.is_file() or root.root is None:
        return ""
    digest = blake2b(digest_size=16)
    for batch in pl.scan_parquet(paths).collect_batches(chunk_size=50_000):
        for path in batch["path"]:
            digest.update(f"{path}\0{_state(root, path)}\0".encode())
    return digest.hexdigest()


def _state(root: ImageRoot, path: str) -> str:
    try:
        info = root.info(path)
    except PictureError:
        return ABSENT
    changed = (info.get(name) for name in ("mtime", "ETag", "etag", "CRC"))
    return f"{info.get('size')} {next((value for value in changed if value), None)}"
