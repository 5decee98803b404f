"""A file of an archive is read whole, and takes no more memory than the archive says."""

import tracemalloc
import zipfile
from pathlib import Path

import pytest

from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_file_is_read_whole_however_it_is_packed(tmp_path: Path, method: str) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(300_000))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", METHODS[method]) as archive:
        archive.writestr("x.png", data)
    assert ImageRoot(str(tmp_path / "a.zip")).read("x.png") == data


@pytest.mark.parametrize("method", ["stored", "deflate", "bzip2"])
def test_a_file_that_unpacks_to_more_than_is_told_is_refused_in_little_memory(
    tmp_path: Path, method: str
) -> None:
    num_bytes, told = 30_000_000, 1000
    with zipfile.ZipFile(tmp_path / "a.zip", "w", METHODS[method]) as archive:
        archive.writestr("x.png", bytes(num_bytes))
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(
        whole.replace(num_bytes.to_bytes(4, "little"), told.to_bytes(4, "little"))
    )
    root = ImageRoot(str(tmp_path / "a.zip"))
    assert root.check("x.png") == told
    del whole
    tracemalloc.start()
    try:
        with pytest.raises(PictureError) as refused:
            root.read("x.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.rule == "unreadable_image"
    assert peak < 1_000_000
