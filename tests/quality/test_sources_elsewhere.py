"""Sources behind a URL, and rows that carry their pictures: curated as local files with paths are."""

import gzip
import io
import json
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quality import curate as curate_module
from quality.curate import curate
from tests.quality.conftest import scene
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.workspace import Workspace

QA = {"format": Format.IMAGE_QA, "task": Task.VQA_SINGLE}


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    scene(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_and_pictures_of_an_object_storage(workspace: Workspace) -> None:
    """Windows paths, too, and paths that leave the root."""
    memory = fsspec.filesystem("memory")
    for number in range(4):
        memory.pipe_file(f"/far/pictures/sub/{number}.png", png(number))
    paths = [rf"sub\{number}.png" for number in range(4)] + ["../x.png", r"C:\x\1.png", "sub/9.png"]
    rows = [{"image": path, "question": "Gì đây thế?", "answer": f"vật {n}"} for n, path in enumerate(paths)]
    memory.pipe_file("/far/a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    source = Source(name="far", paths=("memory://far/*.gz",), image_root="memory://far/pictures", **QA)
    summary = curate(source, CurationSettings(), workspace)
    assert summary.rejected == {"path_leaves_root": 2, "missing_image": 1}
    assert summary.pairs_out == 4
    assert curate(source, CurationSettings(), workspace).reused
    memory.pipe_file("/far/pictures/sub/0.png", png(77))
    assert not curate(source, CurationSettings(), workspace).reused


def test_a_picture_in_an_object_storage_that_changes_but_for_its_size_is_read_again(
    workspace: Workspace,
) -> None:
    memory = fsspec.filesystem("memory")
    blue, red = (io.BytesIO(), io.BytesIO())
    Image.new("RGB", (64, 64), "blue").save(blue, "BMP")
    Image.new("RGB", (64, 64), "red").save(red, "BMP")
    memory.pipe_file("/swap/pictures/x.bmp", blue.getvalue())
    row = {"image": "x.bmp", "question": "Màu gì đây?", "answer": "một màu"}
    memory.pipe_file("/swap/a.jsonl", json.dumps(row).encode())
    source = Source(name="swap", paths=("memory://swap/a.jsonl",), image_root="memory://swap/pictures", **QA)

    def identity() -> str:
        pairs = pl.read_parquet(workspace.curated("swap") / "pairs.parquet")
        return str(pairs["query_images"].explode().item())

    curate(source, CurationSettings(), workspace)
    before = identity()
    assert curate(source, CurationSettings(), workspace).reused
    memory.pipe_file("/swap/pictures/x.bmp", red.getvalue())
    assert len(red.getvalue()) == len(blue.getvalue())
    assert not curate(source, CurationSettings(), workspace).reused
    assert identity() != before


def test_pictures_in_the_rows_are_stored_in_bounded_batches(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "image": {"bytes": png(number % 20), "path": None},
            "question": "Gì thế?",
            "answer": f"vật số {number}",
        }
        for number in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Source(name="packed", paths=(str(tmp_path / "a.parquet"),), **QA)
    sizes: list[int] = []
    batches = curate_module._batches

    def counted(*arguments):
        for batch in batches(*arguments):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(curate_module, "_batches", counted)
    monkeypatch.setattr(curate_module, "BATCH_BYTES", 5 * len(png(0)))
    summary = curate(source, CurationSettings(), workspace)
    assert summary.pairs_out == 40
    assert max(sizes) < 10
    images = summary.details["images"]
    assert ImageStore(images["path"], images["version"]).table(["image_id"]).num_rows == 20
    used = pl.read_parquet(workspace.curated("packed") / "pairs.parquet")["query_images"].explode().n_unique()
    assert used == 20
