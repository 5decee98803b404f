"""The digest of picture files moves when one changes, goes, or can be read again."""

from pathlib import Path
from threading import Barrier

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


def test_versions_of_files_elsewhere_are_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, names = fsspec.filesystem("memory"), [f"{number}.png" for number in range(8)]
    for name in names:
        memory.pipe_file(f"/many/pictures/{name}", name.encode())
    table = tmp_path / "pictures.parquet"
    pl.DataFrame({"path": names}).write_parquet(table)
    root = ImageRoot("memory://many/pictures")
    before, info, together = paths_digest(root, table), type(memory).info, Barrier(len(names), timeout=10)

    def wait(self: object, path: str, **keys: object) -> object:
        together.wait()
        return info(self, path, **keys)

    monkeypatch.setattr(type(memory), "info", wait)
    assert paths_digest(root, table) == before
    assert not together.broken
