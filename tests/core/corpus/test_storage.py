"""Web servers that are busy, refuse or lack something: asked again, and told of in words."""

import errno
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tests.web_server import QuietHandler, answered_by_s3, serving, without_waiting
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.readers.files import list_files
from vipolyqwen_core.corpus.readers.read import read_source
from vipolyqwen_core.corpus.storage import ATTEMPTS, why

ROW = b'{"instruction": "C\xc3\xa2u h\xe1\xbb\x8fi", "output": "Tr\xe1\xba\xa3 l\xe1\xbb\x9di"}\n'


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Scripted(QuietHandler):
    """Serves files without parts of them and without a mark or a time; some answers fail first, or all."""

    files: ClassVar[dict[str, bytes]] = {}
    failures: ClassVar[dict[str, tuple[int, int]]] = {}
    """By path: a status, and how many times it is the answer."""
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self.answer(405)

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        status, times = self.failures.get(self.path, (0, 0))
        if self.asked[self.path] <= times:
            self.answer(status, headers={"Location": self.path} if status == 302 else {})
        elif self.path in self.files:
            self.answer(200, self.files[self.path])
        else:
            self.answer(404)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    without_waiting(monkeypatch)
    Scripted.files, Scripted.failures = {}, {}
    Scripted.asked.clear()
    with serving(Scripted) as address:
        yield address


def source_at(address: str) -> Source:
    return Source(name="far", task=Task.INSTR, format=Format.ALPACA, paths=(address,))


def test_a_busy_server_is_asked_again_what_a_folder_holds(server: str) -> None:
    Scripted.files = {"/texts/": b'<a href="a.jsonl">a</a>', "/texts/a.jsonl": ROW}
    Scripted.failures = {"/texts/": (503, 2)}
    assert [file.name for file in list_files(source_at(f"{server}/texts/*.jsonl"))] == ["a.jsonl"]


def test_a_folder_of_a_server_that_does_not_answer_is_not_left_out(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec passes over it, as over one that is not there."""
    Scripted.files = {"/": b'<a href="en/">en</a> <a href="vi/">vi</a>', "/en": b'<a href="a.jsonl">a</a>'}
    Scripted.files["/en/a.jsonl"] = ROW
    (found,) = list_files(source_at(f"{server}/*/a.jsonl"))
    assert found.name == "en/a.jsonl"
    listed = HTTPFileSystem._ls_real

    async def silent(self: HTTPFileSystem, url: str, detail: bool = True, **settings: object) -> object:
        if url.rstrip("/").endswith("/vi"):
            raise TimeoutError("no answer within 60 s")
        return await listed(self, url, detail=detail, **settings)

    monkeypatch.setattr(HTTPFileSystem, "_ls_real", silent)
    with pytest.raises(ValueError, match=r"cannot be opened: .*/vi cannot be listed: no answer within 60 s"):
        list_files(source_at(f"{server}/*/a.jsonl"))


def test_an_archive_of_a_busy_server_that_gives_no_parts_is_read(server: str) -> None:
    Scripted.files = {"/a.zip": archive_of({"d/a.jsonl": ROW * 3, "b.txt": b"b"})}
    Scripted.failures = {"/a.zip": (503, 2)}
    records = list(read_source(source_at(f"zip://d/*.jsonl::{server}/a.zip")))
    assert [len(record.pairs) for record in records] == [1, 1, 1]


def test_pictures_in_an_archive_of_a_busy_server_that_gives_no_parts_are_read(server: str) -> None:
    Scripted.files = {"/a.zip": archive_of({"d/x.png": b"picture"})}
    Scripted.failures = {"/a.zip": (503, 2)}
    root = ImageRoot(f"{server}/a.zip")
    assert root.read("d/x.png") == b"picture"
    with pytest.raises(PictureError, match="no such file"):
        root.read("x.png")


def test_a_large_file_of_which_a_server_tells_nothing_has_its_bytes_read_for_a_version(server: str) -> None:
    """In parts of 5 MiB, which this server does not give."""
    contents = [ROW * 100_000, ROW * 100_001]
    versions = []
    for content in (*contents, contents[0]):
        assert len(content) > 5 * 2**20
        Scripted.files = {"/a.jsonl": content}
        versions += [file.version for file in list_files(source_at(f"{server}/a.jsonl"))]
    assert versions[0] == versions[2] != versions[1]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (403, "cannot be opened: the server answered 403 Forbidden; if it wants a login, download the files"),
        (500, "cannot be opened: the server answered 500 Internal Server Error"),
        (302, "cannot be opened: the server sends from one address to the next without end"),
        (404, "there is no file"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl?download=true"])
def test_what_a_server_answered_is_told_in_words(server: str, status: int, told: str, name: str) -> None:
    """What an address asks of its server is no wildcard: else each failure would be that nothing matches."""
    Scripted.failures = {f"/{name}": (status, 1000)}
    with pytest.raises(ValueError, match="source 'far': ") as refused:
        list_files(source_at(f"{server}/{name}"))
    assert told in str(refused.value)
    assert f"{server}/a.jsonl" in str(refused.value)


@pytest.mark.parametrize("status", [403, 503])
def test_an_archive_that_cannot_be_fetched_is_told_with_its_server_s_answer(server: str, status: int) -> None:
    Scripted.failures = {"/a.zip": (status, 1000)}
    with pytest.raises(ValueError, match=rf"cannot be opened: .*/a\.zip cannot be fetched: .*{status}"):
        list_files(source_at(f"zip://a.jsonl::{server}/a.zip"))
    assert Scripted.asked["/a.zip"] == (ATTEMPTS if status == 503 else 1)
    with pytest.raises(ValueError, match=rf"image root .*/a\.zip cannot be opened: .* answered {status}"):
        ImageRoot(f"{server}/a.zip")


@pytest.mark.parametrize("pattern", ["*/a.jsonl", "**/a.jsonl", "v*/a.jsonl"])
def test_a_folder_that_an_object_storage_does_not_list_is_not_left_out(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec passes over it: of a corpus in S3, that of a busy moment would be curated without it."""
    memory = fsspec.filesystem("memory")
    for folder in ("en", "vi"):
        memory.pipe_file(f"/busy/{folder}/a.jsonl", ROW)
    monkeypatch.setattr(MemoryFileSystem, "find", AbstractFileSystem.find)  # as others find: folder by folder
    assert len(list_files(source_at("memory://busy/*/a.jsonl"))) == 2
    listed = MemoryFileSystem.ls

    def ls(self: MemoryFileSystem, path: str, detail: bool = True, **settings: object) -> list[object]:
        if path.endswith("/vi"):
            raise OSError(errno.EBUSY, "Please reduce your request rate.")
        return listed(self, path, detail, **settings)  # type: ignore[no-any-return]

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    with pytest.raises(ValueError, match=r"cannot be opened: .*/vi cannot be listed: .*reduce your"):
        list_files(source_at(f"memory://busy/{pattern}"))


class ManyServers(QuietHandler):
    """Serves parts of one file, each answer with another mark of it."""

    CONTENT = archive_of({"a.jsonl": ROW * 3, "filling": os.urandom(12_000_000)})
    marks = count()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        mark = {"ETag": f'"{next(self.marks)}"', "Accept-Ranges": "bytes"}
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")):
            self.answer(200, self.CONTENT, mark)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(self.CONTENT))
        part = f"bytes {start}-{end - 1}/{len(self.CONTENT)}"
        self.answer(206, self.CONTENT[start:end], {**mark, "Content-Range": part})


def test_servers_that_mark_one_file_each_in_their_own_way_are_read() -> None:
    with serving(ManyServers) as address:
        records = list(read_source(source_at(f"zip://*.jsonl::{address}/all.zip")))
    assert len(records) == 3


@pytest.mark.parametrize("number", [2_000, 2_600, 4_000])
def test_a_file_that_is_replaced_while_it_is_read_gives_no_rows_of_both(number: int) -> None:
    """Whatever the length of the other, and where a part of it ends."""
    text = "".join(chr(ord("a") + place % 26) for place in range(3000))

    def rows(kind: str, number: int) -> bytes:
        row = '{"instruction": "%s %d ' + text + '", "output": "%d"}\n'
        return "".join(row % (kind, n, n) for n in range(number)).encode()

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/replaced/a.jsonl", rows("old", 2_600))
    records = read_source(source_at("memory://replaced/*.jsonl"))
    assert next(records).pairs
    memory.pipe_file("/replaced/a.jsonl", rows("new", number))
    with pytest.raises(ValueError, match=r"behind line \d+ of a\.jsonl: .*(replaced while|shorter than)"):
        list(records)


def test_what_a_folder_holds_is_not_listed_to_tell_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 has no other folders than these lists: with many pictures it takes long, and s3fs keeps it."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/many/pictures/x.png", b"picture")
    for name in ("isdir", "ls", "find"):
        monkeypatch.setattr(MemoryFileSystem, name, None)
    assert ImageRoot("memory://many/pictures").read("x.png") == b"picture"
    with pytest.raises(ValueError, match="is no folder"):
        ImageRoot("memory://many/scans")


def test_what_s3_refuses_is_told_with_what_to_do() -> None:
    """Where it was asked for no content, it says `Bad Request` of a token that has expired."""
    for status, error in ((400, OSError(errno.EINVAL, "Bad Request")), (403, PermissionError("Forbidden"))):
        told = why(answered_by_s3(error, status))
        assert "are the credentials right, not expired, and may they" in told
    assert "credentials" not in why(answered_by_s3(OSError(errno.EBUSY, "Slow Down"), 503))
    assert why(FileNotFoundError("bucket/a.zip")) == "there is no such file"
