"""The image store gives back what was written, version by version, in any order, in another process too."""

import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.corpus import image_store
from vipolyqwen_core.corpus.image_store import (
    ImageStore,
    is_stored,
    remove_versions,
    replaced_versions,
    write_images,
)


def picture(number: int) -> dict[str, Any]:
    return {
        "image_id": f"{number:032x}",
        "bytes": b"picture" * number,
        "format": "PNG",
        "width": number,
        "height": 1,
        "phash": "0" * 16,
        "origin": f"{number}.png",
        "reencoded": False,
    }


def test_pictures_come_back_by_row_in_the_order_asked_for(tmp_path: Path) -> None:
    store = write_images(tmp_path / "a" / "s.lance", map(picture, range(1, 151)))
    assert len(store) == 150
    assert store.read([149, 2, 149, 0]) == [b"picture" * n for n in (150, 3, 150, 1)]
    assert store.read([]) == []
    assert store.table(["width"])["width"].to_pylist() == list(range(1, 151))


def test_pictures_are_written_as_soon_as_they_are_many_or_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store, "ROWS_PER_BATCH", 40)
    monkeypatch.setattr(image_store, "BYTES_PER_BATCH", 7 * 500)
    sizes = [len(group) for group in image_store._groups(map(picture, range(1, 151)))]
    assert sizes[:3] == [32, 13, 10]  # 1 + ... + 32 = 528, 33 + ... + 45 = 507, 46 + ... + 55 = 505
    assert sum(sizes) == 150
    many = [len(group) for group in image_store._groups([picture(1)] * 100)]
    assert many == [40, 40, 20]
    assert len(write_images(tmp_path / "s", map(picture, range(1, 151)))) == 150


def test_a_written_version_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda opened: synced.add(os.fstat(opened).st_ino))
    write_images(tmp_path / "s.lance", map(picture, range(1, 9)))
    files = [path for path in (tmp_path / "s.lance").rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_ino for path in files} <= synced


def test_an_older_version_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.lance"
    first = write_images(path, [picture(1), picture(2)]).version
    second = write_images(path, [picture(2)]).version
    assert ImageStore(path, first).table(["image_id"])["image_id"].to_pylist() == [f"{1:032x}", f"{2:032x}"]
    assert ImageStore(path, second).table(["image_id"])["image_id"].to_pylist() == [f"{2:032x}"]
    assert ImageStore(path).version == second


def test_a_writer_that_fails_leaves_the_last_version(tmp_path: Path) -> None:
    path = tmp_path / "s.lance"
    first = write_images(path, [picture(1)]).version

    def failing() -> Iterator[dict[str, Any]]:
        yield from map(picture, range(2, 200))
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match=r"^the disk is full$"):
        write_images(path, failing())
    store = ImageStore(path)
    assert (store.version, len(store)) == (first, 1)


@pytest.mark.parametrize(
    "error", [ValueError("behind line 3"), ChildProcessError("killed"), KeyboardInterrupt()]
)
def test_what_the_rows_raise_stays_what_it_is(tmp_path: Path, error: BaseException) -> None:
    """Lance would make an OSError of it, whose message is the traceback."""

    def failing() -> Iterator[dict[str, Any]]:
        yield picture(1)
        raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        write_images(tmp_path / "s.lance", failing())
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)


def test_an_error_of_lance_stays_one(tmp_path: Path) -> None:
    (tmp_path / "s.lance").write_text("no folder")
    with pytest.raises(OSError, match=r"s\.lance"):
        write_images(tmp_path / "s.lance", map(picture, range(1, 200)))


def test_only_what_was_replaced_is_listed_and_a_first_writer_that_was_killed_is_no_hindrance(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.lance"
    assert replaced_versions(path) == []
    (path / "data").mkdir(parents=True)
    assert replaced_versions(path) == []
    versions = [write_images(path, [picture(n)]).version for n in (1, 2, 3)]
    assert replaced_versions(path) == versions[:2]
    remove_versions(path, versions[:1])
    assert replaced_versions(path) == versions[1:2]
    assert ImageStore(path, versions[1]).read([0]) == [b"picture" * 2]
    assert [is_stored({"path": str(path), "version": version}) for version in versions] == [False, True, True]
    assert is_stored(None)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s\.lance does not exist"):
        ImageStore(tmp_path / "s.lance", 1)
    write_images(tmp_path / "s.lance", [picture(1)])
    with pytest.raises(ValueError, match="has no version 9"):
        ImageStore(tmp_path / "s.lance", 9)


def test_a_store_that_was_deleted_and_written_anew_is_not_taken_for_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "s.lance"
    pinned = write_images(path, [picture(1)]).pin
    assert ImageStore(**pinned).read([0]) == [b"picture"]
    shutil.rmtree(path)
    anew = write_images(path, [picture(2)]).pin
    assert anew["version"] == pinned["version"]
    assert not is_stored(pinned)
    with pytest.raises(ValueError, match=r"s\.lance was deleted or replaced: version 1 is another one"):
        ImageStore(**pinned)
    before = {"path": str(path), "version": 1}  # as pins were written before versions had a uuid
    assert ImageStore(**before).pin == anew


def test_a_store_travels_to_spawned_processes(tmp_path: Path) -> None:
    store = write_images(tmp_path / "s.lance", map(picture, range(1, 4)))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.pin == store.pin
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.read, ([2, 0],)) == [b"picture" * 3, b"picture"]
