"""Files appear whole or not at all, and every column of the contract has an Arrow type."""

import errno
import os
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipolyqwen_core import contract
from vipolyqwen_core.corpus import tables
from vipolyqwen_core.corpus.tables import (
    StageSummary,
    arrow_schema,
    arrow_type,
    link_or_copy,
    open_parquet,
    read_arrow,
    read_stage,
    unchanged_stage,
    written_aside,
)

TABLES = (
    "PAIR",
    "TAGGED",
    "TRAINING",
    "PLAN_INDEX",
    "MINED",
    "LEDGER",
    "IMAGE_STORE",
    "ASSIGNMENTS",
    "EXPORT",
)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_the_contract_has_a_schema(table: str) -> None:
    columns = getattr(contract, table)
    schema = arrow_schema(columns)
    assert schema.names == [column.name for column in columns]
    assert len(set(schema.names)) == len(schema.names)


def test_nested_types_are_spelled_out() -> None:
    text = pa.large_string()
    assert arrow_type("list<struct<text: string, images: list<string>>>") == pa.large_list(
        pa.struct([("text", text), ("images", pa.large_list(text))])
    )
    assert arrow_type("fixed_size_list<float32>[1024]") == pa.list_(pa.float32(), 1024)
    with pytest.raises(ValueError, match="unknown column type 'text'"):
        arrow_type("text")


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
    monkeypatch.setattr(tables, "_exchange", lambda *_: False)
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
            os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried yet
        with written_aside(target) as aside:
            aside.mkdir()
            (aside / "inside").write_text("of this process")
        assert (target / "inside").read_text() == "of this process"
        assert len(list(tmp_path.iterdir())) == (1 if is_killed else 2)
        if not is_killed:
            writer.communicate("\n")
    assert (target / "inside").read_text() == ("of this process" if is_killed else "of another process")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("name", ["pairs.parquet", "train.arrow", "images.json"])
def test_a_stage_whose_table_is_gone_or_cut_runs_again(tmp_path: Path, name: str) -> None:
    StageSummary("curated", "f1", "d1", pairs_in=3, pairs_out=2, rejected={}).write(tmp_path)
    table, file = pa.table({"text": ["một", "hai"]}), tmp_path / name
    assert unchanged_stage(tmp_path, "f1", (name,)) is None
    if name.endswith(".parquet"):
        pq.write_table(table, file)
    elif name.endswith(".arrow"):
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        file.write_text('{"demo_ocr": {"version": 1}}', encoding="utf-8")
    assert unchanged_stage(tmp_path, "f1", (name,)) is not None
    for size in (file.stat().st_size - 9, 0):
        with file.open("r+b") as opened:
            opened.truncate(size)
        assert unchanged_stage(tmp_path, "f1", (name,)) is None


@pytest.mark.parametrize("size", [0, 4, 200, -9])
def test_a_table_that_was_cut_is_named(tmp_path: Path, size: int) -> None:
    table = pa.table({"text": ["một", "hai"] * 100})
    pq.write_table(table, tmp_path / "cut.parquet")
    with pa.ipc.new_file(tmp_path / "cut.arrow", table.schema) as writer:
        writer.write_table(table)
    assert read_arrow(tmp_path / "cut.arrow") == table
    for read, name in ((open_parquet, "cut.parquet"), (read_arrow, "cut.arrow")):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
        with pytest.raises(ValueError, match=rf"{name} is damaged .* delete it"):
            read(tmp_path / name)


@pytest.mark.parametrize("can_link", [True, False])
def test_a_file_has_a_second_name_or_is_copied_where_the_disk_cannot_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not can_link:
        monkeypatch.setattr(os, "link", refuse)
    file, place = tmp_path / "file", tmp_path / "place"
    file.write_text("content", encoding="utf-8")
    link_or_copy(file, place)
    assert place.read_text(encoding="utf-8") == "content"
    assert place.samefile(file) == can_link


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text('{"stage": "cura', encoding="utf-8")
    with pytest.raises(ValueError, match=r"stage\.json is damaged .* delete it"):
        read_stage(tmp_path)


def test_a_stage_is_reused_only_with_an_equal_fingerprint(tmp_path: Path) -> None:
    summary = StageSummary("curated", "f1", "d1", pairs_in=3, pairs_out=2, rejected={"empty_side": 1})
    assert read_stage(tmp_path) is None
    summary.write(tmp_path)
    assert read_stage(tmp_path) == summary
    assert unchanged_stage(tmp_path, "f2") is None
    reused = unchanged_stage(tmp_path, "f1")
    assert reused is not None
    assert reused.reused
    assert reused.data_version == "d1"
    reused.write(tmp_path)
    assert read_stage(tmp_path) == summary


def test_a_parquet_file_that_is_read_in_batches_is_not_kept(tmp_path: Path) -> None:
    file, rng = tmp_path / "vectors.parquet", np.random.default_rng(0)
    with pq.ParquetWriter(file, pa.schema({"value": pa.float32()})) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"value": rng.random(100_000, dtype=np.float32)}))
    before, most = pa.total_allocated_bytes(), 0
    with open_parquet(file) as opened:
        for _ in opened.iter_batches(10_000):
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < file.stat().st_size / 5
