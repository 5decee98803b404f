"""Damaged files never crash a reader, and every record of theirs is accounted for."""

import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import Record, check_source, read_source

OWNER_ROWS: list[dict[str, Any]] = [
    {"data_type": "contrastive_with_score", "input": "một", "output": "hai", "similarity_score": 0.5},
    {"data_type": "instruction", "input": [{"role": "user", "content": "hỏi"}], "output": "đáp"},
    {"data_type": "ocr", "images": ["a/1.png"], "question": "<image> gì?", "answer": "chữ", "group_id": "g"},
    {
        "data_type": "vqa_multi",
        "images": ["a/1.png", "a/2.png"],
        "input": [
            {"role": "system", "content": "ngắn"},
            {"role": "user", "content": "<image>đâu?"},
            {"role": "assistant", "content": "đây"},
            {"role": "user", "content": "还有<image>?"},
        ],
        "output": "kia",
        "negatives": ["x", {"text": "y", "images": ["a/3.png"]}],
    },
]
ALPACA_ROWS = [{"instruction": f"việc {n}", "input": "này", "output": "xong"} for n in range(4)]
QA_ROWS = [{"image": f"{n}.png", "question": "gì?", "answer": "số"} for n in range(4)]
MESSAGE_ROWS = [
    {
        "messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "t"}],
        "images": ["1.png"],
    }
] * 4
STS_CSV = 'sentence1,sentence2,score\nmột,hai,3.5\n"ba, ""bốn""","năm\nsáu",0\n七,八,5\n'


def lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + b"\n"


def parquet() -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"image": [b"png", b"gif"], "question": ["gì?", "đâu?"], "answer": ["a", "b"]})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


STS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR, "score_range": (0.0, 5.0)}
ALPACA: dict[str, Any] = {"format": Format.ALPACA, "task": Task.INSTR}
QA: dict[str, Any] = {"format": Format.IMAGE_QA, "task": Task.OCR}
MESSAGES: dict[str, Any] = {"format": Format.MESSAGES, "task": Task.VQA_MULTI}
FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "owner.jsonl": (lines(OWNER_ROWS), {"format": Format.OWNER_JSONL}),
    "owner.jsonl.gz": (gzip.compress(lines(OWNER_ROWS)), {"format": Format.OWNER_JSONL}),
    "sts.csv": (STS_CSV.encode(), STS),
    "sts.tsv": (STS_CSV.replace(",", "\t").encode(), STS),
    "alpaca.json": (json.dumps(ALPACA_ROWS, ensure_ascii=False, indent=1).encode(), ALPACA),
    "alpaca_one_line.json": (json.dumps({"data": ALPACA_ROWS}).encode(), ALPACA),
    "qa.jsonl": (lines(QA_ROWS), QA),
    "qa.parquet": (parquet(), QA),
    "messages.jsonl": (lines(MESSAGE_ROWS), MESSAGES),
}
SCRAPS = [
    b'"', b"\\", b"\n", b"\r", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b",", b"null",
    b"-1e999", b"NaN", b"1" * 5000, b"[" * 2000, b"\\ud800", b"\xed\xa0\x80", b'{"a":' * 300, b"\xc4\x91",
    b"\t", b";",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, "", " ", 0, -1, 1e308, float("nan"), 10**400, [], {}, [[]], [None], "\ud800", "<image>" * 9,
    {"role": "user"}, [{"role": "user", "content": None}], ["a", 1], {"bytes": None, "path": None}, "../x",
    "\x00", "x" * 9999,
]  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    content = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            del content[place : place + rng.randrange(1, 30)]
        elif kind == 1:
            content[place:place] = rng.choice(SCRAPS)
        elif kind == 2 and place < len(content):
            content[place] = rng.randrange(256)
        elif kind == 3:
            content[place:place] = content[place : place + rng.randrange(1, 60)]
        else:
            del content[max(place, len(content) // 3) :]
    return bytes(content)


def damage_value(value: Any, rng: random.Random) -> Any:
    """One value somewhere inside replaced, a key renamed or lost: JSON that is still JSON."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        changed = dict(value)
        key = rng.choice(list(changed))
        kind = rng.random()
        if kind < 0.15:
            changed[f"{key}_"] = changed.pop(key)
        elif kind < 0.3:
            del changed[key]
        else:
            changed[key] = damage_value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], damage_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


def account(source: Source, turns: str) -> tuple[Counter[str], list[Record]]:
    """Outcomes of the records, after holding each to what a record is."""
    records = list(read_source(source, turns))
    outcomes: Counter[str] = Counter()
    last = 0
    for record in records:
        assert bool(record.pairs) != (record.rejection is not None)
        assert record.line > last
        last = record.line
        if record.rejection is None:
            outcomes["pairs"] += 1
            for pair in record.pairs:
                assert isinstance(pair.query, str)
                assert isinstance(pair.target, str)
                assert pair.score is None or 0 <= pair.score <= 1
        else:
            assert record.rejection.reason
            assert len(record.rejection.value) <= 200
            (record.rejection.reason + record.rejection.value).encode()
            outcomes[record.rejection.rule] += 1
    return outcomes, records


def refusal(source: Source) -> str:
    """What `check_source` says of a source; nothing where it is content."""
    try:
        check_source(source)
    except ValueError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes_are_read_or_rejected(tmp_path: Path, name: str) -> None:
    data, keys = FILES[name]
    rng = random.Random(name)
    outcomes: Counter[str] = Counter()
    for number in range(60):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(damage_bytes(data, rng))
        source = Source(name="s", paths=(str(path),), image_root=str(tmp_path), **keys)
        outcomes += account(source, rng.choice(("last", "each")))[0]
        assert (said := refusal(source)) == "" or said.startswith("source 's'")
    if name != "qa.parquet":  # one changed byte of so small a file breaks it all
        assert outcomes["pairs"] > 0
        assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        (OWNER_ROWS, {"format": Format.OWNER_JSONL}),
        (ALPACA_ROWS, ALPACA),
        (QA_ROWS, QA),
        (MESSAGE_ROWS, MESSAGES),
    ],
    ids=["owner", "alpaca", "image_qa", "messages"],
)
def test_strange_values_are_read_or_rejected_one_record_a_row(
    tmp_path: Path, rows: list[Any], keys: dict[str, Any]
) -> None:
    rng = random.Random(0)
    damaged = [damage_value(rows[n % len(rows)], rng) for n in range(300)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in damaged))
    for turns in ("last", "each"):
        outcomes, records = account(Source(name="s", paths=(str(path),), **keys), turns)
        assert [record.line for record in records] == list(range(1, 301))
        assert outcomes["unreadable_file"] == 0
        assert outcomes["pairs"] > 30
        assert len(outcomes) > 3


def test_damaged_parallel_files_account_for_every_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in (("1.txt", "a\nb\nc\n"), ("2.txt", "đ\ne\nf\n"), ("3.txt", "1\n0\n1\n")):
            (folder / name).write_bytes(damage_bytes(content.encode(), rng) or b"x")
        paths = tuple(str(folder / name) for name in ("1.txt", "2.txt", "3.txt"))
        source = Source(name="s", format=Format.PARALLEL_LINES, task=Task.TEXT_PAIR, paths=paths)
        outcomes += account(source, "last")[0]
    assert {"pairs", "missing_line", "score_not_a_number"} <= set(outcomes)
