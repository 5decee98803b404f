"""Pictures go through processes and come back in order, whatever happens to a process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from quality import picture_pool
from quality.intake import PictureIntake, normalised_rows, references_of
from quality.picture_pool import (
    CRASHED,
    LARGE_PIXELS,
    RETURNED_BYTES,
    LoadedPicture,
    MemoryShortageError,
    PicturePool,
)
from tests.quality.conftest import scene
from tests.quality.pool_work import Deadly, Gone, Replaced, Starved, TooLarge, meet, newer_than, use_the_pool
from tests.stored_pictures import file_of
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError, decode_picture, store_picture
from vipolyqwen_core.corpus.readers.records import RawPair, Record

MAX_PIXELS = 100_000_000


@pytest.fixture
def pool():
    pool = PicturePool(MAX_PIXELS, num_workers=2)
    yield pool
    pool.close()


def rules(loaded: list[LoadedPicture]) -> list[str | None]:
    return [result.error.rule if result.error else None for result in loaded]


def test_files_bytes_and_errors_keep_their_order(pool: PicturePool, tmp_path: Path) -> None:
    pictures, expected = [], []
    for number in range(60):
        data = file_of(scene(number))
        if number % 3 == 0:
            pictures.append(data)
        elif number % 3 == 1:
            path = tmp_path / f"{number}.png"
            path.write_bytes(data)
            pictures.append(path)
        else:
            pictures.append(PictureError("missing_image", str(number)))
        expected.append(None if number % 3 == 2 else (image_id(scene(number)), data))
    pictures += [tmp_path, tmp_path / "nowhere.png", b"", b"no picture"]
    loaded = list(pool.load(pictures))
    found = [result.image and (result.image["image_id"], result.image["bytes"]) for result in loaded]
    assert found == [*expected, None, None, None, None]
    assert [str(result.error) for result in loaded[2:60:3]] == [str(number) for number in range(2, 60, 3)]
    assert rules(loaded[60:]) == ["unreadable_image", "unreadable_image", "empty_image", "not_an_image"]


def test_a_picture_that_kills_its_process_is_the_only_one_lost(pool: PicturePool) -> None:
    pictures = [file_of(scene(number)) for number in range(40)]
    deadly = {3, 4, 25}
    loaded = list(pool.load([Deadly("x") if n in deadly else data for n, data in enumerate(pictures)]))
    assert rules(loaded) == [CRASHED if number in deadly else None for number in range(40)]
    assert all(r.image["bytes"] == data for r, data in zip(loaded, pictures, strict=True) if r.image)
    assert rules(list(pool.load(pictures))) == [None] * 40


def test_a_picture_at_which_processes_are_killed_is_not_rejected(pool: PicturePool) -> None:
    good = file_of(scene(1))
    with pytest.raises(ChildProcessError, match="it was killed, a second one was killed: they want memory"):
        list(pool.load([good, TooLarge("large.png")]))
    assert rules(list(pool.load([good]))) == [None]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])  # of which the latter's decoder does not speak of memory
def test_a_picture_for_which_a_process_is_given_no_memory_is_not_rejected(
    pool: PicturePool, tmp_path: Path, kind: str
) -> None:
    """As with `ulimit -v`, where the system kills nothing."""
    good = file_of(scene(1))
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large", kind)
    with pytest.raises(MemoryShortageError, match="was given too little memory, a second one was given too"):
        list(pool.load([good, Starved(tmp_path / "large"), good]))
    assert rules(list(pool.load([good]))) == [None]


def test_a_broken_picture_is_rejected_where_there_is_memory(pool: PicturePool) -> None:
    data = file_of(scene(1))
    assert rules(list(pool.load([data[: len(data) // 2]]))) == ["truncated_image"]


@pytest.mark.parametrize(
    ("reference", "named"), [("large.png", r"{root}: large\.png"), (b"large", r"in a\.jsonl:7")]
)
def test_the_picture_for_which_memory_is_short_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str | bytes, named: str
) -> None:
    """Also where a process gets its bytes, from an archive, a storage or a row."""
    monkeypatch.setattr(PictureIntake, "_find", lambda intake, reference: TooLarge("x"))
    intake = PictureIntake(ImageRoot(str(tmp_path)), MAX_PIXELS)
    try:
        with pytest.raises(MemoryShortageError, match=rf"picture {named.format(root=tmp_path)}: .* killed"):
            list(intake.load([(reference, "a.jsonl:7")]))
    finally:
        intake.close()


def test_no_more_pictures_are_taken_than_may_wait(
    pool: PicturePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, taken = file_of(scene(1)), []
    path = tmp_path / "x.png"
    path.write_bytes(data)

    def taking(picture: bytes | Path) -> Iterator[bytes | Path]:
        taken.clear()
        for _ in range(200):
            taken.append(picture)
            yield picture

    def taken_at_each(picture: bytes | Path) -> list[int]:
        return [len(taken) for _ in islice(pool.load(taking(picture)), 20)]

    # Two processes, each with 4 groups of 8 pictures, and the group that is next.
    assert taken_at_each(path) == [72] * 8 + [80] * 8 + [88] * 4
    monkeypatch.setattr(picture_pool, "GROUP_BYTES", 2 * len(data))
    monkeypatch.setattr(picture_pool, "BYTES_AHEAD", 6 * len(data))
    assert taken_at_each(data) == [number for number in range(8, 28, 2) for _ in range(2)]


def workers_of(executor: ProcessPoolExecutor | None) -> list[psutil.Process]:
    assert executor is not None
    return [psutil.Process(pid) for pid in executor._processes]


def kill(workers: list[psutil.Process]) -> None:
    """An executor ends the others itself when one is gone, perhaps before their turn here."""
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def test_workers_that_are_killed_from_outside_cost_nothing(pool: PicturePool) -> None:
    loaded = pool.load(file_of(scene(number)) for number in range(400))
    first = next(loaded)
    kill(workers_of(pool._executor))
    some = [next(loaded) for _ in range(100)]
    kill([*workers_of(pool._executor), *workers_of(pool._lone)])
    assert rules([first, *some, *loaded]) == [None] * 400


def test_the_bytes_are_of_the_file_that_was_hashed(pool: PicturePool, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(file_of(scene(1)))
    newer_than(picture).write_bytes(file_of(scene(2)))
    replaced, gone = pool.load([Replaced(picture), Gone(picture)])
    assert replaced.image is not None
    assert replaced.image["image_id"] == image_id(scene(2))
    assert replaced.image["bytes"] == file_of(scene(2))
    assert rules([gone]) == ["unreadable_image"]


def test_large_pictures_written_anew_come_back_on_disk_and_leave_nothing_there(pool: PicturePool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (11, 400, 400, 4), dtype=np.uint8)
    pictures = [file_of(Image.fromarray(pixels)) for pixels in noise]
    loaded = list(pool.load(pictures))
    for data, result in zip(pictures, loaded, strict=True):
        assert result.image is not None
        assert result.image["reencoded"]
        assert len(result.image["bytes"]) > RETURNED_BYTES
        decoded = decode_picture(data, MAX_PIXELS)
        assert result.image["bytes"] == store_picture(data, decoded).bytes
    assert list(Path(pool._scratch.name).iterdir()) == []


def test_only_large_pictures_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    side = int(LARGE_PIXELS**0.5) + 10
    large = file_of(Image.new("RGB", (side, side), "red"))
    turns: list[str] = []

    class Turns:
        def __enter__(self) -> None:
            turns.append("taken")

        def __exit__(self, *reason: object) -> None:
            turns.append("left")

    def hashed(image: Image.Image) -> str:
        turns.append("hashed")
        return image_id(image)

    monkeypatch.setattr(picture_pool, "_large_pictures", Turns(), raising=False)
    monkeypatch.setattr(picture_pool, "image_id", hashed)
    assert picture_pool._load_picture(file_of(scene(1)), MAX_PIXELS).image is not None
    assert turns == ["hashed"]
    assert picture_pool._load_picture(large, MAX_PIXELS).image is not None
    assert turns == ["hashed", "taken", "hashed", "left"]
    assert picture_pool._load_picture(large[: len(large) // 2], MAX_PIXELS).image is None
    assert turns[4:] == ["taken", "left"]


def test_workers_leave_ctrl_c_to_their_caller(pool: PicturePool, tmp_path: Path) -> None:
    loaded = pool.load(file_of(scene(number)) for number in range(200))
    first = next(loaded)
    assert pool._executor is not None
    for meeting in [pool._executor.submit(meet, tmp_path) for _ in range(2)]:
        meeting.result(timeout=60)
    workers = workers_of(pool._executor)
    for worker in workers:
        worker.send_signal(signal.SIGINT)
    assert rules([first, *loaded]) == [None] * 200
    assert workers_of(pool._executor) == workers


def test_closing_early_leaves_nothing_behind(tmp_path: Path) -> None:
    pool = PicturePool(MAX_PIXELS, tmp_path, num_workers=1)
    assert rules(list(pool.load([Deadly("x"), file_of(scene(1))]))) == [CRASHED, None]
    loaded = pool.load(file_of(scene(number)) for number in range(500))
    assert next(loaded).image is not None
    workers = [*workers_of(pool._executor), *workers_of(pool._lone)]
    assert Path(pool._scratch.name).parent == tmp_path
    pool.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert not Path(pool._scratch.name).exists()
    with pytest.raises((RuntimeError, CancelledError)):
        list(loaded)
    unused = PicturePool(MAX_PIXELS, num_workers=1)
    unused.close()
    with pytest.raises(RuntimeError, match="was closed"):
        next(unused.load([file_of(scene(1))]))


PROGRAM = """
import itertools, sys
from pathlib import Path
from quality.picture_pool import PicturePool

if __name__ == "__main__":
    for _ in PicturePool(10**8, num_workers=2).load(itertools.repeat(Path(sys.argv[1]))):
        print("loaded", flush=True)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    program, picture = tmp_path / "program.py", tmp_path / "x.png"
    program.write_text(PROGRAM, encoding="utf-8")
    picture.write_bytes(file_of(scene(1)))
    root = Path(__file__).parents[2]
    command = [sys.executable, str(program), str(picture)]
    scratch = {"TMPDIR": str(tmp_path)}  # which a killed process leaves
    environment = {**os.environ, "PYTHONPATH": str(root), **scratch}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []


def test_a_spawned_process_ends_after_using_the_pool() -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=use_the_pool, args=(file_of(scene(1)),))
    process.start()
    began = time.monotonic()
    process.join(60)
    assert process.exitcode == 0, f"after {time.monotonic() - began:.0f} s"


def test_processes_that_never_start_are_no_fault_of_a_picture(tmp_path: Path) -> None:
    unguarded = tmp_path / "unguarded.py"
    unguarded.write_text(
        "from quality.picture_pool import PicturePool\n"
        "next(PicturePool(10**8, num_workers=1).load([b'no picture']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(unguarded)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "RuntimeError: the processes that decode pictures do not start" in done.stderr


def test_a_row_says_first_which_of_its_pictures_killed_a_process(tmp_path: Path) -> None:
    """So that a report, which shows rejected rows, does not open it again."""

    class Root(ImageRoot):
        def local_file(self, path: str) -> Path | None:
            return Deadly(path) if path == "deadly.png" else super().local_file(path)

    intake = PictureIntake(Root(str(tmp_path)), MAX_PIXELS)
    pair = RawPair(Task.VQA_MULTI, "Khác gì?", "màu", query_images=("gone.png", "deadly.png", "lost.png"))
    record = Record("a.jsonl", 1, (pair,))
    try:
        assert list(intake.load(references_of(record))) == []
        rows = normalised_rows([record], "corpus", intake, CurationSettings())
    finally:
        intake.close()
    assert rows["rule"].to_list() == [CRASHED]
    assert rows["value"].to_list() == ["deadly.png"]
