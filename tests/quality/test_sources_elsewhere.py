"""Sources behind a URL, and rows that carry their pictures: curated as local files with paths are."""

import gzip
import io
import json
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import aiohttp
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tenacity import wait_none

from quality import curate as curate_module
from quality import intake
from quality.curate import curate
from tests.quality.conftest import scene
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.pictures import PictureError
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


class Tired(BaseHTTPRequestHandler):
    """Serves pictures at the second attempt; one of them never."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path == "/images":
            self._answer(200, b'<a href="0.png">0.png</a>')
        elif self.path.endswith("/never.png") or self.asked[self.path] == 1:
            self._answer(503, b"busy")
        else:
            self._answer(200, png(int(Path(self.path).stem)))

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Be silent."""


def test_a_picture_whose_server_is_busy_is_asked_for_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake._read_patiently.retry, "wait", wait_none())
    Tired.asked.clear()
    names = [f"{number}.png" for number in range(5)] + ["never.png"]
    rows = [{"image": name, "question": "Gì đây thế?", "answer": f"vật {n}"} for n, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), Tired) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}/images/"
        source = Source(name="tired", paths=(str(tmp_path / "a.jsonl"),), image_root=root, **QA)
        summary = curate(source, CurationSettings(), workspace)
        server.shutdown()
    assert summary.pairs_out == 5
    assert summary.rejected == {"unreadable_image": 1}
    assert Tired.asked["/images/never.png"] == intake.ATTEMPTS


def failed(cause: Exception | None) -> PictureError:
    """As `ImageRoot.read` raises it."""
    error = PictureError("unreadable_image", "the picture cannot be read")
    error.__cause__ = cause
    return error


def answered(status: int) -> Exception:
    error = FileNotFoundError("https://host/x.png")
    error.__cause__ = aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]
    return error


@pytest.mark.parametrize(
    ("cause", "again"),
    [
        (answered(503), True),
        (answered(429), True),
        (answered(403), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (aiohttp.ServerDisconnectedError(), True),
        (PermissionError(), False),
        (zipfile.BadZipFile("Bad CRC-32"), False),
        (None, False),
    ],
)
def test_only_what_may_pass_is_tried_again(cause: Exception | None, again: bool) -> None:
    assert intake._may_pass(failed(cause)) is again
