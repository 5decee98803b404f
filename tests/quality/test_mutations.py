"""Damaged corpora of every format through the whole of curation: no crash, and every record accounted for."""

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from assets.findings import curation_loses_nothing
from quality.curate import curate
from quality.rules import RULES
from tests.core.corpus.readers.test_mutations import (
    ALPACA_ROWS,
    MESSAGE_ROWS,
    OWNER_ROWS,
    QA_ROWS,
    SCRAPS,
    STS_CSV,
    damage_bytes,
    damage_value,
)
from tests.quality.conftest import scene
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import read_source
from vipolyqwen_core.workspace import Workspace

SETTINGS = CurationSettings(max_image_pixels=1_000_000, dialogue_turns="each")
PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


def picture(kind: str, number: int) -> bytes:
    buffer = io.BytesIO()
    image = scene(number)
    if kind == "GIF":
        image.save(buffer, kind, save_all=True, append_images=[scene(number + 1)])
    elif kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(buffer, kind, exif=exif)
    elif kind == "PNG":
        image.convert("RGBA").save(buffer, kind)
    else:
        image.save(buffer, kind)
    return buffer.getvalue()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", data)
    return buffer.getvalue()


def jsonl(rows: list[Any]) -> bytes:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return lines.encode("utf-8", "surrogatepass") + b"\n"


def parquet(rows: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def bytes_in_parquet() -> bytes:
    """As Hugging Face writes pictures."""
    rows = [
        {
            "image": {"bytes": picture(kind, number), "path": f"{number}.x"},
            "question": "gì?",
            "answer": ["số", "chữ"],
        }
        for number, kind in enumerate(PICTURES)
    ]
    return parquet(rows)


OWNER: dict[str, Any] = {"format": Format.OWNER_JSONL}
ALPACA: dict[str, Any] = {"format": Format.ALPACA, "task": Task.INSTR}
STS: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR, "score_range": (0.0, 5.0)}
QA: dict[str, Any] = {"format": Format.IMAGE_QA, "task": Task.OCR}
MESSAGES: dict[str, Any] = {"format": Format.MESSAGES, "task": Task.VQA_MULTI}
PARALLEL: dict[str, Any] = {"format": Format.PARALLEL_LINES, "task": Task.TEXT_PAIR}
ADAPTER: dict[str, Any] = {"format": Format.ADAPTER, "adapter": "examples.sroie:questions"}

ROWS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "owner": (OWNER_ROWS, OWNER),
    "alpaca": (ALPACA_ROWS, ALPACA),
    "image_qa": ([*QA_ROWS, {"image": "1.png", "question": "gì?", "answers": ["a", {"answer": "b"}]}], QA),
    "messages": (MESSAGE_ROWS, MESSAGES),
    "sts": ([{"sentence1": f"câu {n}", "sentence2": f"lời {n}", "score": n} for n in range(5)], STS),
}
"""Formats whose rows are damaged as values, then written by one of the CONTAINERS."""
CONTAINERS: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": jsonl,
    "json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"),
    "lines.json": jsonl,
    "one.json": lambda rows: json.dumps({"info": {}, "data": rows}).encode(),
    "utf16.jsonl": lambda rows: jsonl(rows).decode("utf-8", "replace").encode("utf-16"),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n"),
    "jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "jsonl.xz": lambda rows: lzma.compress(jsonl(rows)),
    "jsonl.zst": lambda rows: pa.compress(jsonl(rows), codec="zstd", asbytes=True),
    "jsonl.zip": lambda rows: zipped(jsonl(rows)),
}
TABLES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.csv": (STS_CSV.encode(), STS),
    "a.tsv": (STS_CSV.replace(",", "\t").encode("utf-8-sig"), STS),
    "latin.csv": ("sentence1,sentence2,score\ndéjà,vu,3\nnaïve,été,4\n".encode("latin-1"), STS),
    "vi.csv": (
        "sentence1,sentence2,score\nđươ\u0300ng,ti\u00ea\u0301ng,3\nđi,về,4\n".encode("cp1258", "replace"),
        STS,
    ),
    "qa.csv": (b"image,question,answer\n1.png,a?,b\n..\\2.png,c?,d\nC:\\3.png,e?,f\n", QA),
    "sts.parquet": (parquet(ROWS["sts"][0]), STS),
    "qa.parquet": (bytes_in_parquet(), QA),
}


class Mutant:
    """One damaged corpus on disk: a damaged file, in most formats a sound one beside it, damaged pictures."""

    def __init__(self, folder: Path, number: int) -> None:
        self.rng = rng = random.Random(f"mutant {number}")
        self.folder = folder
        (folder / "images" / "a").mkdir(parents=True)
        for place, kind in enumerate(PICTURES):
            names = [f"{place}.png", f"a/{place}.png", f"{place}.jpg"]
            for name in names:
                data = picture(kind, place)
                damaged = damage_bytes(data, rng) if rng.random() < 0.4 else data
                (folder / "images" / name).write_bytes(damaged)
        if rng.random() < 0.3:
            (folder / "images" / f"{rng.randrange(6)}.png").unlink()
        self.kind, self.source = self._write(number)

    def _write(self, number: int) -> tuple[str, Source]:
        rng = self.rng
        kinds = [*ROWS, "tables", "parallel", "adapter"]
        kind = kinds[number % len(kinds)]
        if kind == "parallel":
            texts = ["một\nhai\nba\n", "one\ntwo\nthree\n", "1\n0\n1,\n"]
            names = [f"{place}.txt" for place in range(3)]
            contents = [damage_bytes(text.encode(), rng) for text in texts]
            return kind, self._source(dict(zip(names, contents, strict=True)), PARALLEL)
        if kind == "adapter":
            receipt = [{"company": "A", "date": "1/1/2020", "address": "B", "total": "3.00"}]
            return kind, self._source(
                {"0.json": damage_bytes(jsonl(receipt), rng), "1.json": jsonl(receipt)}, ADAPTER
            )
        if kind == "tables":
            name = rng.choice(list(TABLES))
            data, keys = TABLES[name]
            return name, self._source({name: damage_bytes(data, rng), f"sound_{name}": data}, keys)
        sound, keys = ROWS[kind]
        rows = sound
        container = rng.choice(list(CONTAINERS))
        how = rng.randrange(3)
        if how != 1:
            rows = [damage_value(row, rng) if rng.random() < 0.5 else row for row in rows]
        data = CONTAINERS[container](json.loads(json.dumps(rows)))
        if how != 0:
            data = damage_bytes(data, rng) if rng.random() < 0.8 else data + rng.choice(SCRAPS)
        return f"{kind} {container}", self._source({f"a.{container}": data, "b.jsonl": jsonl(sound)}, keys)

    def _source(self, files: dict[str, bytes], keys: dict[str, Any]) -> Source:
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        paths = tuple(str(self.folder / name) for name in files)
        languages = self.rng.choice([(), ("vi",), ("vi", "zh")])
        return Source(
            name="s", paths=paths, image_root=str(self.folder / "images"), languages=languages, **keys
        )


def outcome(folder: Path, number: int) -> tuple[str, Counter[str]]:
    """Curate one mutant; what became of its records and pairs, after holding both equations."""
    folder.mkdir()
    mutant = Mutant(folder, number)
    place = Workspace(folder / "home")
    refused = ""
    try:
        summary = curate(mutant.source, SETTINGS, place)
    except ValueError as error:
        refused = str(error)
    if refused:  # nothing in it can be read: said before any work, in one sentence
        assert refused.startswith("source 's'"), (number, mutant.kind, refused)
        assert not place.curated("s").exists()
        return mutant.kind, Counter({"source refused": 1})
    finding = curation_loses_nothing(place, "s")
    assert finding.passed, (number, mutant.kind, finding.sentence)
    assert summary.records == sum(1 for _ in read_source(mutant.source, "each")), (number, mutant.kind)
    ledger = pl.read_parquet(place.curated("s") / "ledger.parquet")
    own_rules = {"missing_key"} if mutant.kind == "adapter" else set()
    assert set(ledger["rule"]) <= set(RULES) | own_rules, (number, mutant.kind)
    assert ledger["reason"].null_count() == 0
    assert (ledger["value"].str.len_chars() <= 200).all()
    counts = Counter(dict(ledger.group_by("rule").len().iter_rows()))
    return mutant.kind, counts + Counter({"kept": summary.pairs_out})


def outcomes(folder: Path, numbers: range) -> tuple[Counter[str], Counter[str]]:
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for number in numbers:
        kind, found = outcome(folder / str(number), number)
        kinds[kind.split(" ")[0]] += 1
        counts += found
    return kinds, counts


def test_damaged_corpora_are_curated_or_refused(tmp_path: Path) -> None:
    kinds, counts = outcomes(tmp_path, range(64))
    assert len(kinds) >= 8
    assert counts["kept"] > 50
    assert len(counts) > 12


@pytest.mark.slow
def test_a_thousand_damaged_corpora_are_curated_or_refused(tmp_path: Path) -> None:
    kinds, counts = outcomes(tmp_path, range(1000))
    print(dict(kinds.most_common()), dict(counts.most_common()))
    assert {*ROWS, "parallel", "adapter", *TABLES} <= set(kinds)
    assert counts["kept"] > 1000
    assert counts["source refused"] < 100
    assert {"broken_json", "missing_field", "unreadable_file", "truncated_image", "missing_image"} <= set(
        counts
    )
