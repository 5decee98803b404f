"""Parquet: rows come one by one, and what cannot be read costs its row or its column."""

import struct
import tracemalloc
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.core.corpus.readers.reading import read, rules
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import RawPair, check_source, parquet_rows, read_source
from vipolyqwen_core.corpus.readers.files import list_files

KEYS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}


def test_parquet_streams_by_row(tmp_path: Path) -> None:
    table = pa.table({"a": [f"q{i}" for i in range(600)], "b": ["t"] * 600, "c": [0.5] * 599 + [None]})
    pq.write_table(table, tmp_path / "x.parquet")
    columns = {"query": "a", "target": "b", "score": "c"}
    data = (tmp_path / "x.parquet").read_bytes()
    records = read(tmp_path, "a.parquet", data, columns=columns, **KEYS)
    assert [record.line for record in records] == list(range(1, 601))
    assert records[598].pairs == (RawPair(Task.TEXT_PAIR, "q598", "t", score=0.5),)
    assert rules(records[599:]) == ["missing_field"]


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_parquet_in_a_zip_archive_is_read_however_it_is_packed(tmp_path: Path, packing: int) -> None:
    pq.write_table(pa.table({"query": ["a", "b"], "target": ["c", "d"]}), tmp_path / "x.parquet")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as archive:
        archive.write(tmp_path / "x.parquet", "x.parquet")
    records = read(tmp_path, "x.parquet.zip", (tmp_path / "x.zip").read_bytes(), **KEYS)
    assert [pair.query for record in records for pair in record.pairs] == ["a", "b"]


def test_a_row_group_is_not_looked_at_before_the_one_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file elsewhere that would fetch it twice."""
    pq.write_table(pa.table({"query": ["a", "b"], "target": ["c", "d"]}), tmp_path / "a.parquet", 1)
    looked, num_rows = [], parquet_rows._num_rows
    monkeypatch.setattr(parquet_rows, "_num_rows", lambda *given: looked.append(given) or num_rows(*given))
    (file,) = list_files(Source(name="s", paths=(str(tmp_path / "a.parquet"),), **KEYS))
    rows = parquet_rows.parquet_rows(file)
    next(rows)
    assert len(looked) == 1
    assert len(list(rows)) == 1
    assert len(looked) == 2


@pytest.mark.parametrize("is_large", [False, True])
def test_rows_of_groups_of_any_weight_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 1000)
    monkeypatch.setattr(parquet_rows, "GROUP_BYTES", 0 if is_large else 10**9)
    texts = [[f"q{i}" for i in range(50)], [f"{i}" * 500 for i in range(9)], [], ["x"]]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"query": pa.string()})) as writer:
        for group in texts:
            writer.write_table(pa.table({"query": pa.array(group, pa.string())}))
    (file,) = list_files(Source(name="s", paths=(str(tmp_path / "a.parquet"),), **KEYS))
    rows = list(parquet_rows.parquet_rows(file))
    assert [row.fields["query"] for row in rows] == [text for group in texts for text in group]
    assert [row.line for row in rows] == list(range(1, 61))


@pytest.mark.parametrize("is_repeated", [False, True])
def test_heavy_rows_are_few_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_repeated: bool
) -> None:
    """As scans are, each of its own, or one that a dictionary holds for all its rows."""
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 2_000_000)
    monkeypatch.setattr(parquet_rows, "REPEATED_BYTES", 2_000_000)
    scans = pa.array([b"%5d" % i * 40_000 for i in range(1 if is_repeated else 100)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100), scans) if is_repeated else scans
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", dictionary_pagesize_limit=10**9)
    (file,) = list_files(Source(name="s", paths=(str(tmp_path / "a.parquet"),), **KEYS))
    tracemalloc.start()
    try:
        num_bytes = sum(len(row.fields["image"]) for row in parquet_rows.parquet_rows(file))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_bytes == 20_000_000
    assert peak < 5_000_000


REPEATED = pa.DictionaryArray.from_arrays(pa.array([0] * 200), ["x" * 200_000])


@pytest.mark.parametrize(
    "columns",
    [
        {f"c{number}": REPEATED for number in range(4)},
        {"c": pa.ListArray.from_arrays(pa.array(range(0, 201, 4), pa.int32()), REPEATED)},
    ],
)
def test_dictionaries_of_several_columns_or_lists_are_few_times_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, pa.Array]
) -> None:
    """A file of kilobytes took 7 GB."""
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (file,) = list_files(Source(name="s", paths=(str(tmp_path / "a.parquet"),), **KEYS))
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        num_rows = sum(1 for _ in parquet_rows.parquet_rows(file))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_rows == len(next(iter(columns.values())))
    assert peak < 2_500_000


def test_long_texts_in_lists_are_read_at_once_as_their_dictionary_is_short(tmp_path: Path) -> None:
    turns = [[{"role": "user", "text": f"{row} {turn} " * 100} for turn in range(8)] for row in range(4_000)]
    pq.write_table(pa.table({"turns": turns}), tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as stream:
        group = pq.read_metadata(stream).row_group(0)
        assert group.total_byte_size * 8 * 8 > parquet_rows.MOST_BYTES
        assert parquet_rows._num_rows(group, stream) >= parquet_rows.FEWEST_ROWS


def test_a_number_is_the_name_of_a_column_where_pandas_gave_it_that(tmp_path: Path) -> None:
    pq.write_table(pa.table({"1": ["t"], "0": ["q"]}), tmp_path / "x.parquet")
    source = Source(name="s", paths=(str(tmp_path / "x.parquet"),), columns={"query": 0, "target": 1}, **KEYS)
    assert check_source(source)
    (record,) = read_source(source)
    assert record.pairs == (RawPair(Task.TEXT_PAIR, "q", "t"),)


def test_a_value_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    """A time beyond the year 9999, or bytes that are no UTF-8; in a column that nobody needs, too."""
    ends = pa.py_buffer(struct.pack("<4i", 0, 1, 2, 3))
    table = pa.table(
        {
            "query": ["p", "q", "r"],
            "target": pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"a\xffb")),
            "score": [Decimal("0.25"), Decimal("0.50"), Decimal("0.75")],
            "made": pa.array([0, 1, 2**61], pa.timestamp("us")),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    first, *others = read(tmp_path, "a.parquet", (tmp_path / "x.parquet").read_bytes(), **KEYS)
    assert first.pairs == (RawPair(Task.TEXT_PAIR, "p", "a", score=0.25),)
    assert rules(others) == ["wrong_type", "wrong_type"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0], pa.timestamp("us", tz="Mars/Base")),
        pa.array([2**62], pa.duration("s")),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=["zone", "duration", "struct"],
)
def test_a_column_that_python_cannot_hold_is_named(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"query": ["q"], "target": ["t"], "odd": column}), tmp_path / "x.parquet")
    source = Source(name="s", paths=(str(tmp_path / "x.parquet"),), **KEYS)
    with pytest.raises(ValueError, match="column 'odd' holds a value of"):
        check_source(source)


def test_a_name_that_stands_twice_is_no_column_to_read(tmp_path: Path) -> None:
    columns = [pa.array(values) for values in (["q"], ["t"], [1.0], ["x"], ["y"])]
    for names, rule in (
        ("query target score note note", None),
        ("q target s query query", "ambiguous_column"),
    ):
        pq.write_table(pa.table(columns, names=names.split()), tmp_path / "x.parquet")
        records = read(tmp_path, "a.parquet", (tmp_path / "x.parquet").read_bytes(), **KEYS)
        assert rules(records) == [rule]
