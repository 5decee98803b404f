"""Every column of the contract has an Arrow type; a stage whose tables are whole is used again."""

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipolyqwen_core import contract
from vipolyqwen_core.corpus.tables import (
    StageSummary,
    arrow_schema,
    arrow_type,
    link_or_copy,
    open_parquet,
    read_arrow,
    read_batches,
    read_stage,
    unchanged_stage,
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
    for _ in read_batches(file, 10_000):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < file.stat().st_size / 5


def test_a_table_with_wrong_bytes_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"text": [f"câu {number}" for number in range(20_000)]}), file)
    whole = file.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for start in (1_000, footer):
        content = bytearray(whole)
        content[start : start + 200] = b"\x55" * 200
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"pairs\.parquet is damaged .* delete it"):
            list(read_batches(file, 1_000))


def test_an_error_of_the_disk_is_no_damage_that_one_may_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", fails)
    with pytest.raises(OSError, match="Input/output error"):
        list(read_batches(Path("pairs.parquet"), 10))
