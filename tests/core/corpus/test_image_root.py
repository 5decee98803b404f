"""Pictures are read below their root only, under whatever form of the path a file has."""

import io
import os
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal

import fsspec
import pytest

from tests.web_server import QuietHandler, serving, without_waiting
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError

Form = Literal["NFC", "NFD"]
NO_MAC = pytest.mark.skipif(sys.platform == "darwin", reason="names are found in either form there")


@pytest.fixture
def root(tmp_path: Path) -> ImageRoot:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.png").write_bytes(b"x")
    (folder / unicodedata.normalize("NFD", "ảnh.png")).write_bytes(b"nfd")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images_of_others").mkdir()
    (tmp_path / "images_of_others" / "secret.png").write_bytes(b"secret")
    (folder / "others").symlink_to(tmp_path / "images_of_others")
    (folder / "inner.png").symlink_to(folder / "a" / "x.png")
    return ImageRoot(str(folder))


@pytest.mark.parametrize(
    "path",
    ["a/x.png", "a\\x.png", "./a/x.png", "a/../a//x.png", " a/x.png", "inner.png", "../images/a/x.png"],
)
def test_a_path_below_the_root_is_found(root: ImageRoot, path: str) -> None:
    assert root.read(path) == b"x"


def test_names_are_found_in_either_unicode_form(root: ImageRoot) -> None:
    assert root.read("ảnh.png") == b"nfd"


@NO_MAC
@pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("name", ["ảnh", "ảnh.zip"])
def test_a_root_is_found_in_either_form(tmp_path: Path, written: Form, asked: Form, name: str) -> None:
    place = tmp_path / unicodedata.normalize(written, f"Dữ liệu/{name}")
    place.parent.mkdir()
    if place.suffix:
        with zipfile.ZipFile(place, "w") as packed:
            packed.writestr("x.png", b"x")
    else:
        place.mkdir()
        (place / "x.png").write_bytes(b"x")
    root = ImageRoot(str(tmp_path / unicodedata.normalize(asked, f"Dữ liệu/{name}")))
    assert root.read("x.png") == b"x"
    assert root.version("x.png") == ImageRoot(str(place)).version("x.png")


@NO_MAC
def test_a_folder_from_a_mac_is_found_below_one_that_was_made_here(tmp_path: Path) -> None:
    here, copied = unicodedata.normalize("NFC", "của tôi"), unicodedata.normalize("NFD", "dữ liệu")
    (tmp_path / here / copied).mkdir(parents=True)
    (tmp_path / here / copied / unicodedata.normalize("NFC", "ảnh.png")).write_bytes(b"x")
    for form in ("NFC", "NFD"):
        below = unicodedata.normalize(form, "của tôi/dữ liệu/ảnh.png")
        assert ImageRoot(str(tmp_path)).read(below) == b"x"
        root = ImageRoot(str(tmp_path / unicodedata.normalize(form, "của tôi/dữ liệu")))
        assert root.read("ảnh.png") == b"x"
        assert root.read(unicodedata.normalize(form, "../dữ liệu/ảnh.png")) == b"x"


def test_a_located_path_is_the_same_for_every_spelling(root: ImageRoot) -> None:
    assert {root.locate(path) for path in ("a\\x.png", "./a/x.png", "a/b/../x.png", "../images/a/x.png")} == {
        "a/x.png"
    }


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("../secret.png", "path_leaves_root"),
        ("..\\secret.png", "path_leaves_root"),
        ("a/../../secret.png", "path_leaves_root"),
        ("../images/../secret.png", "path_leaves_root"),
        ("../images", "unreadable_image"),
        ("..", "path_leaves_root"),
        ("/etc/passwd", "path_leaves_root"),
        ("C:\\x.png", "path_leaves_root"),
        ("\\\\server\\x.png", "path_leaves_root"),
        ("https://host/x.png", "path_leaves_root"),
        ("file:///etc/passwd", "path_leaves_root"),
        ("link.png", "path_leaves_root"),
        ("others/secret.png", "path_leaves_root"),
        ("a/y.png", "missing_image"),
        ("", "missing_image"),
        ("  ", "missing_image"),
        ("a\0b", "missing_image"),
        ("a", "unreadable_image"),
        ("a/x.png/y.png", "unreadable_image"),
        ("n" * 5000, "unreadable_image"),
        ("\ud800.png", "unreadable_image"),
        ("data:image/png;base64,iVBORw0KGgo=", "unreadable_image"),
    ],
)
def test_other_paths_are_refused_with_their_rule(root: ImageRoot, path: str, rule: str) -> None:
    with pytest.raises(PictureError) as refused:
        root.read(path)
    assert refused.value.rule == rule


@pytest.mark.parametrize("with_root", [True, False])
def test_a_url_and_an_absolute_path_are_told_for_what_they_are(tmp_path: Path, with_root: bool) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    root = ImageRoot(str(tmp_path) if with_root else None)
    for path, reason in {
        "https://host/x.png": "named by a URL, which is never fetched: download it and name its path",
        " S3://bucket/x.png": "named by a URL, which is never fetched",
        str(tmp_path / "x.png"): "absolute: name it from image_root on",
        "C:\\x.png": "absolute",
        "c://x.png": "absolute",
    }.items():
        with pytest.raises(PictureError, match=reason) as refused:
            root.read(path)
        assert refused.value.rule == "path_leaves_root"


@pytest.mark.parametrize("path", ["n" * 300, "n" * 500_000, "data:image/png;base64," + "n" * 500_000])
def test_a_picture_in_the_place_of_its_path_is_not_repeated(root: ImageRoot, path: str) -> None:
    with pytest.raises(PictureError) as refused:
        root.read(path)
    assert len(str(refused.value)) < 300


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_file_is_neither_read_nor_handed_on(root: ImageRoot) -> None:
    """A pipe would be read for ever, and links may lead in a circle."""
    folder = Path(root.root or "")
    os.mkfifo(folder / "pipe.png")
    (folder / "one.png").symlink_to(folder / "two.png")
    (folder / "two.png").symlink_to(folder / "one.png")
    for path in ("pipe.png", "one.png", "a"):
        for use in (root.read, root.check, root.local_file):
            with pytest.raises(PictureError) as refused:
                use(path)
            assert refused.value.rule == "unreadable_image"
    assert root.local_file("a/x.png") == (folder / "a" / "x.png").resolve()


def test_a_root_behind_a_url_is_read_alike() -> None:
    fsspec.filesystem("memory").pipe_file("/corpus/images/a.png", b"remote")
    root = ImageRoot("memory://corpus/images")
    assert root.read("a.png") == b"remote"
    for path, rule in {"b.png": "missing_image", "../x": "path_leaves_root"}.items():
        with pytest.raises(PictureError) as refused:
            root.read(path)
        assert refused.value.rule == rule


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Pictures as a ZIP program on Windows packs them, one of them broken."""
    with zipfile.ZipFile(tmp_path / "scans.ZIP", "w") as packed:
        for name, data in {"thư\\mục\\1.png": b"one", "a/2.png": b"two", "broken.png": b"x" * 100}.items():
            entry = zipfile.ZipInfo("name")
            entry.filename = name
            packed.writestr(entry, data)
    whole = (tmp_path / "scans.ZIP").read_bytes()
    (tmp_path / "scans.ZIP").write_bytes(whole.replace(b"x" * 100, b"x" * 99 + b"y"))
    return tmp_path / "scans.ZIP"


@pytest.mark.parametrize("url", ["{}", "zip://::{}"])
def test_pictures_are_read_out_of_an_archive(archive: Path, url: str) -> None:
    root = ImageRoot(url.format(archive))
    for path in ("thư\\mục\\1.png", "thư/mục/1.png", unicodedata.normalize("NFD", "thư/mục/1.png")):
        assert root.read(path) == b"one"
        assert root.version(path) == f"3 {zlib.crc32(b'one')}"
    assert root.read("a\\2.png") == b"two"
    rules = {"broken.png": "unreadable_image", "3.png": "missing_image", "../a/2.png": "path_leaves_root"}
    for path, rule in rules.items():
        with pytest.raises(PictureError) as refused:
            root.read(path)
        assert refused.value.rule == rule


def test_threads_that_read_a_tar_get_each_its_own_picture(tmp_path: Path) -> None:
    files = {f"{number}.png": bytes([number]) * 100_000 for number in range(150)}
    with tarfile.open(tmp_path / "scans.tar", "w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    root = ImageRoot(f"tar://::{tmp_path / 'scans.tar'}")
    with ThreadPoolExecutor(16) as threads:
        assert dict(zip(files, threads.map(root.read, files), strict=True)) == files


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be opened: File is not a zip file"):
        ImageRoot(str(tmp_path / "scans.zip"))


def test_names_with_backslashes_are_found(tmp_path: Path) -> None:
    (tmp_path / "a\\1.png").write_bytes(b"unpacked elsewhere")
    root = ImageRoot(str(tmp_path))
    assert root.read("a\\1.png") == root.read("a/1.png") == b"unpacked elsewhere"


def test_a_missing_root_is_refused_and_none_refuses_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        ImageRoot(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no ZIP archive; `.` is a plain character"):
        ImageRoot("$PICTURES/scans")
    with pytest.raises(PictureError) as refused:
        ImageRoot(None).read("a.png")
    assert refused.value.rule == "no_image_root"


def test_a_version_moves_with_the_file_of_either_unicode_form(root: ImageRoot) -> None:
    before = root.version("ảnh.png")
    assert root.version("ảnh.png") == before
    Path(root.root or "", unicodedata.normalize("NFD", "ảnh.png")).write_bytes(b"new")  # as long as before
    assert root.version("ảnh.png") != before
    with pytest.raises(PictureError, match="no such file"):
        root.version("a/y.png")


class Shaky(QuietHandler):
    """Serves /images/good.png; fails at others: `head_only` when its content is asked for."""

    FILES: ClassVar[dict[str, bytes]] = {
        "/images/good.png": b"good",
        "/images": b'<a href="good.png">good.png</a>',
    }

    def do_HEAD(self) -> None:
        self._answer(200 if self.path == "/images/head_only.png" else None)

    def do_GET(self) -> None:
        self._answer(None)

    def _answer(self, status: int | None) -> None:
        content = self.FILES.get(self.path, b"")
        self.answer(status or (200 if content else 404 if "absent" in self.path else 500), content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    without_waiting(monkeypatch)
    with serving(Shaky) as address:
        yield address


def test_a_server_that_fails_costs_a_picture_and_is_not_taken_for_a_missing_file(server: str) -> None:
    root = ImageRoot(f"{server}/images/")
    assert root.read("good.png") == b"good"
    rules = {"absent.png": "missing_image", "broken.png": "unreadable_image"}
    for path, rule in rules.items():
        for use in (root.read, root.check, root.version):
            with pytest.raises(PictureError) as refused:
                use(path)
            assert refused.value.rule == rule
    for use in (root.read, root.version):  # no ETag, so that the version is that of the bytes
        with pytest.raises(PictureError, match="500") as refused:
            use("head_only.png")
        assert refused.value.rule == "unreadable_image"


def test_a_root_on_a_server_that_fails_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="broken/ cannot be opened: the server answered 500"):
        ImageRoot(f"{server}/broken/")
