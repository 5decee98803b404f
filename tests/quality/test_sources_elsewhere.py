"""Sources behind a URL, and rows that carry their pictures: curated as local files with paths are."""

import gzip
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import ClassVar

import aiohttp
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.http import HTTPFile
from PIL import Image
from tenacity import wait_none

from quality import curate as curate_module
from quality import intake
from quality.curate import curate
from quality.trace import NO_LOGIN, trace
from tests.quality.conftest import scene
from tests.stored_pictures import file_of
from tests.web_server import QuietHandler, answered_by_s3, serving, without_waiting
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus import storage
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.readers.files import list_files
from vipolyqwen_core.corpus.readers.read import read_source
from vipolyqwen_core.corpus.storage import (
    ATTEMPTS,
    RemoteFile,
    StorageError,
    is_no_answer,
    may_pass,
    open_storage,
)
from vipolyqwen_core.workspace import Workspace

QA = {"format": Format.IMAGE_QA, "task": Task.VQA_SINGLE}


def png(number: int) -> bytes:
    return file_of(scene(number))


def test_files_and_pictures_of_an_object_storage(workspace: Workspace) -> None:
    """Windows paths, too, and paths that leave the root."""
    memory = fsspec.filesystem("memory")
    for number in range(4):
        memory.pipe_file(f"/far/pictures/sub/{number}.png", png(number))
    paths = [rf"sub\{number}.png" for number in range(4)]
    paths += ["../x.png", r"C:\x\1.png", "sub/9.png", "A" * 9999]
    rows = [{"image": path, "question": "Gì đây thế?", "answer": f"vật {n}"} for n, path in enumerate(paths)]
    memory.pipe_file("/far/a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    source = Source(name="far", paths=("memory://far/*.gz",), image_root="memory://far/pictures", **QA)
    summary = curate(source, CurationSettings(), workspace)
    assert summary.rejected == {"path_leaves_root": 2, "missing_image": 1, "unreadable_image": 1}
    assert summary.pairs_out == 4
    looked_at = pl.read_parquet(workspace.curated("far") / "pictures.parquet")["path"].to_list()
    assert looked_at == [*paths[:4], "sub/9.png"]  # the others are refused, whatever files there are
    assert curate(source, CurationSettings(), workspace).reused
    memory.pipe_file("/far/pictures/sub/0.png", png(77))
    assert not curate(source, CurationSettings(), workspace).reused


def test_a_picture_in_an_object_storage_that_changes_but_for_its_size_is_read_again(
    workspace: Workspace,
) -> None:
    memory = fsspec.filesystem("memory")
    blue, red = (file_of(Image.new("RGB", (64, 64), colour), "BMP") for colour in ("blue", "red"))
    memory.pipe_file("/swap/pictures/x.bmp", blue)
    row = {"image": "x.bmp", "question": "Màu gì đây?", "answer": "một màu"}
    memory.pipe_file("/swap/a.jsonl", json.dumps(row).encode())
    source = Source(name="swap", paths=("memory://swap/a.jsonl",), image_root="memory://swap/pictures", **QA)

    def identity() -> str:
        pairs = pl.read_parquet(workspace.curated("swap") / "pairs.parquet")
        return str(pairs["query_images"].explode().item())

    curate(source, CurationSettings(), workspace)
    before = identity()
    assert curate(source, CurationSettings(), workspace).reused
    memory.pipe_file("/swap/pictures/x.bmp", red)
    assert len(red) == len(blue)
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
    assert ImageStore(**images).table(["image_id"]).num_rows == 20
    used = pl.read_parquet(workspace.curated("packed") / "pairs.parquet")["query_images"].explode().n_unique()
    assert used == 20


class Tired(QuietHandler):
    """Serves pictures at the second attempt; one of them never."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self.answer(200, headers={"ETag": '"1"'})

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path == "/images":
            self.answer(200, b'<a href="0.png">0.png</a>')
        elif self.path.endswith("/never.png") or self.asked[self.path] == 1:
            self.answer(503, b"busy")
        else:
            self.answer(200, png(int(Path(self.path).stem)), {"ETag": '"1"'})


def test_a_picture_whose_server_is_busy_is_asked_for_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake._ask_patiently.retry, "wait", wait_none())
    Tired.asked.clear()
    names = [f"{number}.png" for number in range(5)] + ["never.png"]
    rows = [{"image": name, "question": "Gì đây thế?", "answer": f"vật {n}"} for n, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with serving(Tired) as address:
        root = f"{address}/images/"
        source = Source(name="tired", paths=(str(tmp_path / "a.jsonl"),), image_root=root, **QA)
        summary = curate(source, CurationSettings(), workspace)
        asked = Tired.asked["/images/never.png"]
        again = curate(source, CurationSettings(), workspace)
    assert summary.pairs_out == 5
    assert summary.rejected == {"unreadable_image": 1}
    assert asked == ATTEMPTS
    assert not again.reused, "its server told its version, but did not give it: else its row is lost for good"


class Downloads(QuietHandler):
    """Serves a packed table, as long as its address asks for a download."""

    CONTENT = gzip.compress(b"query\ttarget\nm\xe1\xbb\x99t\tone\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/a.TSV.gz?download=true":
            self.answer(200, self.CONTENT)
        else:
            self.answer(404)


def test_an_address_may_ask_its_server_for_something() -> None:
    keys = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}
    with serving(Downloads) as address:
        url = f"{address}/a.TSV.gz?download=true"
        (record,) = read_source(Source(name="asked", paths=(url,), **keys), "last")
    assert [(pair.query, pair.target) for pair in record.pairs] == [("một", "one")]


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
        (answered(500), True),
        (answered(429), True),
        (answered(408), True),
        (answered_by_s3(OSError(), 503), True),
        (answered_by_s3(OSError(), 500), True),
        (answered_by_s3(OSError(), 403), False),
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
    assert may_pass(failed(cause)) is again


@pytest.mark.parametrize(
    ("protocol", "status", "failed"),
    [
        ("http", 404, False),
        ("http", 410, False),
        ("http", 403, True),
        ("http", 503, True),
        ("memory", 403, False),
    ],
)
def test_a_server_lacks_a_file_only_where_it_says_so(protocol: str, status: int, failed: bool) -> None:
    error = answered(status)
    assert isinstance(error, FileNotFoundError)
    assert is_no_answer(fsspec.filesystem(protocol), error) is failed


class Moody(QuietHandler):
    """Serves one file without parts of it, in a way that the beginning of its path tells."""

    content: ClassVar[bytes] = b""
    asked: ClassVar[Counter[str]] = Counter()
    over: ClassVar[Event] = Event()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        mood = self.path.split("/")[1]
        self.asked[f"{self.command} {self.path}"] += 1
        if mood == "silent":
            self.over.wait()
            return
        if mood == "down" or (mood == "busy" and self.asked[f"{self.command} {self.path}"] == 1):
            self.answer(503)
            return
        self.send_response(200)
        self.send_header("ETag", '"1"')
        if mood != "sizeless":
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content[: len(self.content) // 2 if mood == "cut" else None])


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server."""
    without_waiting(monkeypatch)
    Moody.asked.clear()
    Moody.over.clear()
    with serving(Moody) as address:
        yield address
        Moody.over.set()


def rows_of_texts(number: int) -> list[dict[str, str]]:
    filler = "".join(chr(ord("a") + place % 26) for place in range(3000))
    return [{"instruction": f"Câu hỏi số {n} {filler}", "output": f"Trả lời {n}"} for n in range(number)]


def texts_at(address: str) -> Source:
    return Source(name="texts", task=Task.INSTR, format=Format.ALPACA, paths=(address,))


def test_a_large_file_of_a_server_that_gives_no_parts_is_read(workspace: Workspace, moody: str) -> None:
    """As Python's own server does: fsspec asks for parts of 5 MiB."""
    Moody.content = "\n".join(map(json.dumps, rows_of_texts(2_000))).encode()
    assert len(Moody.content) > 5 * 2**20
    assert curate(texts_at(f"{moody}/plain/a.jsonl"), CurationSettings(), workspace).pairs_out == 2_000


@pytest.mark.parametrize("mood", ["plain", "sizeless"])
def test_a_table_of_a_server_that_gives_no_parts_is_read(workspace: Workspace, moody: str, mood: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows_of_texts(300)), buffer)
    Moody.content = buffer.getvalue()
    assert curate(texts_at(f"{moody}/{mood}/a.parquet"), CurationSettings(), workspace).pairs_out == 300


def test_a_file_that_breaks_off_on_its_way_is_no_broken_file(workspace: Workspace, moody: str) -> None:
    """Else the ledger would say so for good: the file is the same tomorrow."""
    Moody.content = "\n".join(map(json.dumps, rows_of_texts(100))).encode()
    with pytest.raises(ValueError, match=r"source 'texts': .*cut/a\.jsonl cannot be fetched"):
        curate(texts_at(f"{moody}/cut/a.jsonl"), CurationSettings(), workspace)
    assert not workspace.curated("texts").exists()


def test_a_storage_that_gives_up_midway_ends_the_reading(
    workspace: Workspace, moody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout is an OSError, as a damaged file is."""
    Moody.content = "\n".join(map(json.dumps, rows_of_texts(4_000))).encode()  # more than one part
    source = texts_at(f"{moody}/plain/a.jsonl")
    assert len(list(read_source(source))) == 4_000
    records = read_source(source)
    first = next(records)
    assert first.pairs

    def silent(*arguments: object, **settings: object) -> None:
        raise TimeoutError("no answer within 300 s")

    monkeypatch.setattr(HTTPFile, "read", silent)
    with pytest.raises(ValueError, match=r"behind line \d+ of a\.jsonl: .*no answer within 300 s"):
        list(records)


@pytest.mark.parametrize("kept", [10, 2_500])  # all of the next part is gone, or its end
def test_a_file_that_is_cut_while_it_is_read_does_not_end_there(kept: int) -> None:
    memory = fsspec.filesystem("memory")
    lines = [json.dumps(row) + "\n" for row in rows_of_texts(4_000)]  # more than one part
    memory.pipe_file("/cut_midway/a.jsonl", "".join(lines).encode())
    records = read_source(texts_at("memory://cut_midway/a.jsonl"))
    assert next(records).pairs
    memory.pipe_file("/cut_midway/a.jsonl", "".join(lines[:kept]).encode())
    with pytest.raises(ValueError, match=r"behind line \d+ of a\.jsonl: .* is shorter than it was"):
        list(records)


def test_a_server_that_is_busy_is_asked_again_for_a_file(workspace: Workspace, moody: str) -> None:
    Moody.content = json.dumps(rows_of_texts(1)[0]).encode()
    assert curate(texts_at(f"{moody}/busy/a.jsonl"), CurationSettings(), workspace).pairs_out == 1


def test_a_silent_server_is_given_up_and_each_attempt_is_told(
    moody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By aiohttp's own limit, 5 minutes a question, it would take 40 minutes."""
    monkeypatch.setattr(storage, "SILENCE_SECONDS", 0.1)
    with pytest.raises(ValueError, match=r"silent/a\.jsonl cannot be opened: Timeout on reading data"):
        list_files(texts_at(f"{moody}/silent/a.jsonl"))
    assert "attempt 3 of 4 to read http" in caplog.text
    caplog.clear()
    with pytest.raises(ValueError, match=r"image root .*silent/pictures cannot be opened: Timeout on read"):
        ImageRoot(f"{moody}/silent/pictures")
    assert "attempt 3 of 4 to read http" in caplog.text


@pytest.mark.parametrize("location", ["http://host/a.jsonl", "simplecache::https://host/a.jsonl"])
def test_a_large_file_of_a_web_server_may_take_its_time(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By aiohttp's own limit a file that takes more than 5 minutes would be cut, at each attempt."""
    monkeypatch.setattr(storage, "url_to_fs", lambda location, **options: (options, location))
    (options,) = open_storage(location)[0].values()
    assert options["timeout"].total is None
    assert options["timeout"].sock_read == storage.SILENCE_SECONDS


def test_a_server_that_fails_is_not_said_to_lack_a_file(moody: str) -> None:
    with pytest.raises(ValueError, match=r"down/a\.jsonl cannot be opened: the server answered 503"):
        list_files(texts_at(f"{moody}/down/a.jsonl"))


class Guarded(QuietHandler):
    """Gives its file to who brings a login or a token, in whatever folder."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        opened = "token=SECRET" in self.path or self.headers["Authorization"] == "Basic YW5uOlNFQ1JFVA=="
        text = "".join(f'{{"text1": "câu {n}", "text2": "sentence {n}"}}\n' for n in range(3))
        text += "{}\n"
        self.answer(200 if opened else 401, text.encode(), {"ETag": '"1"'})


GUARDED = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR, "name": "guarded"}
COLUMNS = {"query": "text1", "target": "text2"}


@pytest.mark.parametrize("way", ["{login}/a.jsonl", "{address}/a.jsonl?token=SECRET"])
def test_logins_and_tokens_are_in_no_table_and_the_row_is_found_with_the_manifest_s(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with serving(Guarded) as address:
        login = address.replace("://", "://ann:SECRET@")
        source = Source(paths=(way.format(address=address, login=login),), columns=COLUMNS, **GUARDED)
        curate(source, CurationSettings(), workspace)
        folder = workspace.curated("guarded")
        pairs = pl.read_parquet(folder / "pairs.parquet")
        rejected = pl.read_parquet(folder / "ledger.parquet")
        assert set(pairs["file"]) == set(rejected["file"]) == {"a.jsonl"}
        written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert written
        assert not [name for name, data in written.items() if b"SECRET" in data or b"ann:" in data]
        monkeypatch.delenv("VIPOLYQWEN_SOURCES", raising=False)
        (step, *_) = trace(pairs["sample_id"][0], workspace)
        assert (step.outcome, step.sentence.endswith(NO_LOGIN)) == ("missing", True)
        manifest = tmp_path / "m.yaml"
        keys = f"name: guarded, task: text_pair, format: sts_table, paths: ['{source.paths[0]}']"
        manifest.write_text(f"sources: [{{{keys}}}]")
        monkeypatch.setenv("VIPOLYQWEN_SOURCES", str(manifest))
        (step, *_) = trace(pairs["sample_id"][0], workspace)
        assert step.outcome == "read"
        assert "SECRET" not in str(step)


def test_a_link_that_is_signed_anew_curates_nothing_anew(workspace: Workspace) -> None:
    with serving(Guarded) as address:
        reused = []
        for query in ("token=SECRET", "token=SECRET&Expires=7", "token=SECRET&page=2"):
            source = Source(paths=(f"{address}/a.jsonl?{query}",), columns=COLUMNS, **GUARDED)
            reused.append(curate(source, CurationSettings(), workspace).reused)
    assert reused == [False, True, False]


def test_files_that_only_their_queries_tell_apart_have_names_of_their_own() -> None:
    with serving(Guarded) as address:
        links = tuple(f"{address}/d/a.jsonl?token=SECRET&page={page}" for page in (1, 2))
        source = Source(paths=(*links, f"{address}/d/z.jsonl?token=SECRET"), **GUARDED)
        first, second, alone = list_files(source)
        twins = [first, second]
        assert twins != list_files(source.placed(lambda link: link.replace("page=1", "page=3")))[:2]
        signed = source.placed(lambda link: link.replace("SECRET", "SECRET&Expires=7"))
        assert [file.name for file in list_files(signed)] == [file.name for file in (*twins, alone)]
        both = Source(paths=(*links, *(f"{link}&Expires=7" for link in links)), **GUARDED)
        assert len({file.name for file in list_files(both)}) == 4
    assert alone.name == "z.jsonl"
    assert len({file.name for file in twins}) == 2
    assert all(re.fullmatch(r"[0-9a-f]{8}/a\.jsonl", file.name) for file in twins)
    assert {file.suffix for file in twins} == {".jsonl"}


@pytest.mark.parametrize("place", ["{login}/none/", "{address}/none.zip?key=SECRET"])
def test_no_message_has_a_login_or_a_token(place: str) -> None:
    with serving(Downloads) as address:
        place = place.format(login=address.replace("://", "://ann:SECRET@"), address=address)
        with pytest.raises(ValueError, match="source 'guarded'") as refused:
            list_files(Source(paths=(place,), **GUARDED))
        with pytest.raises(ValueError, match="image root") as no_root:
            ImageRoot(f"zip://::{place}")
        with pytest.raises(StorageError, match="cannot be fetched") as unread:
            RemoteFile(fsspec.filesystem("http"), place)
    for error in (refused, no_root, unread):
        assert address in str(error.value)
        assert "SECRET" not in str(error.value)
