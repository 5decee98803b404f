"""Pictures are read below their root only, under whatever form of the path a file has."""

import unicodedata
from pathlib import Path

import fsspec
import pytest

from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError


@pytest.fixture
def root(tmp_path: Path) -> ImageRoot:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.png").write_bytes(b"x")
    (folder / unicodedata.normalize("NFD", "ảnh.png")).write_bytes(b"nfd")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
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
        ("a/y.png", "missing_image"),
        ("", "missing_image"),
        ("  ", "missing_image"),
        ("a\0b", "missing_image"),
        ("a", "unreadable_image"),
        ("a/x.png/y.png", "unreadable_image"),
        ("n" * 5000, "unreadable_image"),
        ("\ud800.png", "unreadable_image"),
    ],
)
def test_other_paths_are_refused_with_their_rule(root: ImageRoot, path: str, rule: str) -> None:
    with pytest.raises(PictureError) as refused:
        root.read(path)
    assert refused.value.rule == rule


def test_a_root_behind_a_url_is_read_alike() -> None:
    fsspec.filesystem("memory").pipe_file("/corpus/images/a.png", b"remote")
    root = ImageRoot("memory://corpus/images")
    assert root.read("a.png") == b"remote"
    for path, rule in {"b.png": "missing_image", "../x": "path_leaves_root"}.items():
        with pytest.raises(PictureError) as refused:
            root.read(path)
        assert refused.value.rule == rule


def test_a_missing_root_is_refused_and_none_refuses_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        ImageRoot(str(tmp_path / "nowhere"))
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
