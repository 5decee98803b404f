"""The digest of picture files moves when one changes, goes, or can be read again."""

from pathlib import Path

import fsspec
import polars as pl
import pytest

from quality.picture_files import paths_digest
from vipolyqwen_core.corpus.image_root import ImageRoot


def test_a_file_that_cannot_be_read_for_now_is_no_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shaky/pictures/a.png", b"a")
    table = tmp_path / "pictures.parquet"
    pl.DataFrame({"path": ["a.png", "b.png"]}).write_parquet(table)
    root = ImageRoot("memory://shaky/pictures")
    there = paths_digest(root, table)
    with monkeypatch.context() as broken:

        def fail(path: str, **keys: object) -> None:
            raise LookupError("the storage is tired")

        broken.setattr(type(memory), "info", fail)
        tired = paths_digest(root, table)
    assert paths_digest(root, table) == there
    memory.rm_file("/shaky/pictures/a.png")
    assert len({there, tired, paths_digest(root, table)}) == 3
