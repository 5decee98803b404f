"""Names are found in either Unicode form: a Mac writes them decomposed, and they look the same."""

import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.core.corpus.readers.reading import read, rules
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import RawPair, check_source, read_source

Form = Literal["NFC", "NFD"]
TABLE: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}
COLUMNS = {"query": "Câu hỏi", "target": "Trả lời"}
FORMS = pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])


def named(form: Form, columns: dict[str, str]) -> dict[str, str | int]:
    return {key: unicodedata.normalize(form, name) for key, name in columns.items()}


def write_table(path: Path, names: list[str], cells: list[str]) -> None:
    if path.suffix == ".csv":
        path.write_text("\n".join(map(",".join, (names, cells))))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table([[cell] for cell in cells], names=names), path)
    else:
        path.write_text(json.dumps(dict(zip(names, cells, strict=True))))


@FORMS
@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_column_is_found(tmp_path: Path, written: Form, asked: Form, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_table(path, [unicodedata.normalize(written, name) for name in COLUMNS.values()], ["q", "t"])
    source = Source(name="s", paths=(str(path),), columns=named(asked, COLUMNS), **TABLE)
    assert check_source(source)
    assert [record.pairs for record in read_source(source)] == [(RawPair(Task.TEXT_PAIR, "q", "t"),)]


@FORMS
def test_a_field_within_another_is_found(tmp_path: Path, written: Form, asked: Form) -> None:
    content = unicodedata.normalize(written, '{"dữ liệu": {"câu": ["q", "t"]}}')
    columns = named(asked, {"query": "dữ liệu.câu.0", "target": "dữ liệu.câu.1"})
    (record,) = read(tmp_path, "a.jsonl", content, columns=columns, **TABLE)
    assert record.pairs == (RawPair(Task.TEXT_PAIR, "q", "t"),)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_two_columns_that_look_the_same_are_no_column_to_read(tmp_path: Path, suffix: str) -> None:
    names = [*(unicodedata.normalize(form, "Câu hỏi") for form in ("NFC", "NFD")), "Trả lời"]
    path = tmp_path / f"a.{suffix}"
    write_table(path, names, ["q", "other", "t"])
    source = Source(name="s", paths=(str(path),), columns=dict(COLUMNS), **TABLE)
    assert rules(list(read_source(source))) == ["ambiguous_column"]


def test_an_empty_field_is_said_to_be_empty(tmp_path: Path) -> None:
    content = unicodedata.normalize("NFD", '{"Câu hỏi": null, "Trả lời": "t"}')
    (record,) = read(tmp_path, "a.jsonl", content, columns=dict(COLUMNS), **TABLE)
    assert record.rejection is not None
    assert unicodedata.normalize("NFC", record.rejection.value) == "fields: Câu hỏi (empty), Trả lời"


@FORMS
def test_a_file_of_parallel_lines_is_found(tmp_path: Path, written: Form, asked: Form) -> None:
    paths = [tmp_path / unicodedata.normalize(written, name) for name in ("tiếng Việt.txt", "tiếng Anh.txt")]
    for path in paths:
        path.write_text("câu\n")
    columns = named(asked, {"query": "tiếng Anh.txt", "target": f"{tmp_path.name}/tiếng Việt.txt"})
    source = Source(
        name="s",
        format=Format.PARALLEL_LINES,
        task=Task.TEXT_PAIR,
        paths=tuple(map(str, paths)),
        columns=columns,
    )
    (record,) = read_source(source)
    assert record.file == unicodedata.normalize(written, "tiếng Anh.txt")
