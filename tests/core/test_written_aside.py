"""Files and folders appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from vipolyqwen_core.written_aside import to_disk, written_aside


@pytest.mark.skipif(sys.platform != "linux", reason="two renames elsewhere")
def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    target, missed, swaps = tmp_path / "target", [], 200
    target.mkdir()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not target.is_dir():
                missed.append(len(list(tmp_path.iterdir())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(swaps):
        with written_aside(target) as aside:
            aside.mkdir()
            (aside / "number").write_text(str(number))
    done.set()
    watcher.join()
    assert not missed
    assert (target / "number").read_text() == str(swaps - 1)
    assert list(tmp_path.iterdir()) == [target]


def test_where_folders_cannot_be_exchanged_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vipolyqwen_core.written_aside._exchange", lambda *_: False)
    for text in ("old", "new"):
        with written_aside(tmp_path / "target") as aside:
            aside.mkdir()
            (aside / "inside").write_text(text)
    assert (tmp_path / "target" / "inside").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_written_aside_replaces_the_old_only_at_the_end(tmp_path: Path, is_folder: bool) -> None:
    def write(path: Path, text: str) -> None:
        if is_folder:
            path.mkdir()
            path = path / "inside"
        path.write_text(text)

    def read() -> str:
        return (target / "inside" if is_folder else target).read_text()

    target = tmp_path / "target"
    with written_aside(target) as aside:
        write(aside, "old")
        assert not target.exists()
    with pytest.raises(RuntimeError), written_aside(target) as aside:  # noqa: PT012
        write(aside, "half")
        raise RuntimeError
    assert read() == "old"
    (tmp_path / ".target.1234.partial").write_text("left by a killed process")
    (tmp_path / ".target.4194305-0.ab.partial").write_text("by one of a system that does not tell its start")
    with written_aside(target) as aside:
        write(aside, "new")
        assert read() == "old"
    assert read() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_is_renamed_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda opened: synced.append(os.fstat(opened).st_ino))
    monkeypatch.setattr(os, "replace", lambda old, new: (synced.append("renamed"), os.rename(old, new)))
    with written_aside(tmp_path / "target") as aside:
        (aside / "folder").mkdir(parents=True)
        (aside / "folder" / "inside").write_text("text")
        (aside / "link").symlink_to("nowhere")
    inside = [tmp_path / "target" / "folder" / "inside", tmp_path / "target" / "folder", tmp_path / "target"]
    assert synced == [*(path.stat().st_ino for path in inside), "renamed", tmp_path.stat().st_ino]
    synced.clear()
    with written_aside(tmp_path / "file") as aside:
        aside.write_text("text")
    assert synced == [(tmp_path / "file").stat().st_ino, "renamed", tmp_path.stat().st_ino]


@pytest.mark.parametrize(("error", "is_passed_over"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_no_folders_is_taken_and_a_broken_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, is_passed_over: bool
) -> None:
    def fsync(opened: int) -> None:
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fsync)
    outcome = nullcontext() if is_passed_over else pytest.raises(OSError, match="Input/output")
    with outcome, written_aside(tmp_path / "target") as aside:
        aside.mkdir()
    assert (tmp_path / "target").is_dir() == is_passed_over
    assert len(list(tmp_path.iterdir())) == is_passed_over


WRITER = """
import sys, time
from pathlib import Path
from vipolyqwen_core.corpus.tables import written_aside
with written_aside(Path(sys.argv[1])) as aside:
    aside.mkdir()
    (aside / "inside").write_text("of another process")
    print("ready", flush=True)
    input()
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_another_process_writes_is_left_alone_while_it_lives(tmp_path: Path, is_killed: bool) -> None:
    target = tmp_path / "target"
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        if is_killed:
            writer.kill()
            if sys.platform == "linux":
                os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried yet
            else:
                writer.wait()
        with written_aside(target) as aside:
            aside.mkdir()
            (aside / "inside").write_text("of this process")
        assert (target / "inside").read_text() == "of this process"
        assert len(list(tmp_path.iterdir())) == (1 if is_killed else 2)
        if not is_killed:
            writer.communicate("\n")
    assert (target / "inside").read_text() == ("of this process" if is_killed else "of another process")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_left_overs_go_whose_process_id_is_that_of_another_by_now(tmp_path: Path) -> None:
    of_others = [f".a[1].txt.{os.getpid()}-1.abcd0123.partial", ".a[1].txt.partial.partial"]
    for name in [*of_others, f".a1.txt.{os.getpid()}-1.abcd0123.partial"]:
        (tmp_path / name).touch()
    with written_aside(tmp_path / "a[1].txt") as aside:
        aside.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".a1.txt.{os.getpid()}-1.abcd0123.partial",  # which is of another path
        "a[1].txt",
    ]


def test_without_linux_a_living_process_is_known_by_its_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (os.getppid(), ended.pid):
        (tmp_path / f".target.{pid}-1.abcd0123.partial").touch()
    with written_aside(tmp_path / "target") as aside:
        assert aside.name.startswith(f".target.{os.getpid()}-1.")
        aside.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        f".target.{os.getppid()}-1.abcd0123.partial",
        "target",
    }


def test_what_finds_no_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, written_aside(tmp_path / "report.html"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "report.html")


def test_what_does_not_reach_the_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "model").touch()
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output") as caught:
        to_disk(tmp_path)
    assert caught.value.filename == str(tmp_path / "model")
