"""Tagging repairs placeholders, measures what the processor makes, and loses no pair."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import LEDGER, PAIR, TAGGED, Task, Turn
from vipolyqwen_core.corpus.hashing import key_hash, side_hash
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema, read_stage
from vipolyqwen_core.corpus.tagging import preview, tag, tag_rows
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.workspace import Workspace

SOURCE = Source(name="s", format=Format.OWNER_JSONL, paths=("/unused",))
PICTURES = {image_id(image): image for image in (Image.new("RGB", (60, 40), c) for c in ("red", "blue"))}
RED, BLUE = PICTURES
NARROW = "f" * 32  # a picture 1 pixel high: the processor refuses it


def pair(line: int, task: Task, query: str, target: str, **fields: Any) -> dict[str, Any]:
    absent = dict.fromkeys(("history", "score", "negatives", "group_id", "positive_key"))
    return {
        "sample_id": f"{line:032x}", "source": "s", "task": task.value, "language": "vi", "query": query,
        "query_images": [], "target": target, "target_images": [], **absent, "file": "a", "line": line,
        "item": 0, **fields,
    }  # fmt: skip


HISTORY = [
    {"role": "system", "text": "ngắn"},
    {"role": "user", "text": "đây?"},
    {"role": "assistant", "text": "mèo"},
]
PAIRS = [
    pair(1, Task.TEXT_PAIR, "một câu", "hai câu <ocr>", score=0.5, positive_key="k"),
    pair(2, Task.OCR, "đọc đi", "chữ", query_images=[RED]),
    pair(3, Task.VQA_SINGLE, "<image> và <image>", "trả lời", query_images=[RED]),
    pair(4, Task.VQA_MULTI, "<image>màu?", "xanh", query_images=[RED, BLUE], history=HISTORY),
    pair(5, Task.INSTR, "thẻ <image> là gì?", "HTML", negatives=[
        {"text": "sai rồi", "images": []}, {"text": "hình", "images": [BLUE]},
        {"text": "ảnh", "images": [RED]},
    ]),
    pair(6, Task.INSTR, "chào", "hai <image>", target_images=[BLUE, RED]),
    pair(7, Task.OCR, "hẹp", "dài " * 400, query_images=[NARROW]),
    pair(8, Task.INSTR, "dài " * 400, "ngắn"),
    pair(9, Task.INSTR, "a", "b", negatives=[{"text": "<image><image>", "images": [RED]}]),
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    place = Workspace(tmp_path)
    sizes = {**{identity: image.size for identity, image in PICTURES.items()}, NARROW: (900, 1)}
    rows = [
        {
            "image_id": identity, "bytes": b"", "format": "PNG", "width": size[0], "height": size[1],
            "phash": "0" * 16, "origin": "x", "reencoded": False,
        }
        for identity, size in sizes.items()
    ]  # fmt: skip
    images = write_images(place.images("s"), rows).pin
    write_images(place.images("s"), rows[:1])  # a later version must not be read
    curate(place, PAIRS, images)
    return place


def curate(place: Workspace, pairs: list[dict[str, Any]], images: Any = None, version: str = "v1") -> None:
    folder = place.curated("s")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(pairs, schema=arrow_schema(PAIR)), folder / "pairs.parquet")
    summary = StageSummary("curated", "f", version, len(pairs), len(pairs), {}, details={"images": images})
    summary.write(folder)


def tables(place: Workspace) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    pairs = pq.read_table(place.tagged("s") / "pairs.parquet")
    ledger = pq.read_table(place.tagged("s") / "ledger.parquet")
    assert pairs.schema.equals(arrow_schema(TAGGED))
    assert ledger.schema.equals(arrow_schema(LEDGER))
    return {row["line"]: row for row in pairs.to_pylist()}, {row["line"]: row for row in ledger.to_pylist()}


def test_every_pair_is_tagged_or_in_the_ledger(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    summary = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    tagged, ledger = tables(workspace)
    assert list(tagged) == [1, 2, 4, 5, 6, 8]
    assert list(ledger) == [3, 7, 9]
    assert {line: row["rule"] for line, row in ledger.items()} == {
        3: "too_many_placeholders", 7: "picture_size", 9: "too_many_placeholders",
    }  # fmt: skip
    assert ledger[3]["sample_id"] == PAIRS[2]["sample_id"]
    assert ledger[3]["reason"] == "2 placeholders <image> for 1 pictures"
    assert {row["stage"] for row in ledger.values()} == {"tagged"}
    assert (summary.pairs_in, summary.pairs_out) == (9, 6)
    assert summary.rejected == {"too_many_placeholders": 2, "picture_size": 1}
    assert summary.details["truncated_pairs"] == 1


def test_the_ledger_shows_the_text_with_too_many_placeholders(
    tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    turns = [{"role": "user", "text": "<image> rồi <image>?"}, {"role": "assistant", "text": "mèo"}]
    rows = [
        pair(1, Task.VQA_SINGLE, "<image> và <image>", "t", query_images=[RED]),
        pair(2, Task.VQA_SINGLE, "q <image>", "t", query_images=[RED], history=turns),
        pair(3, Task.INSTR, "q", "<image><image>", target_images=[RED]),
        pair(4, Task.INSTR, "q", "t", negatives=[
            {"text": "sai", "images": []}, {"text": "<image><image>", "images": [RED]},
        ]),
    ]  # fmt: skip
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    tagged, refused, _ = tag_rows(rows, {RED: (60, 40)}, processor)
    assert tagged == []
    assert {line["line"]: line["value"] for line in refused} == {
        1: "<image> và <image>",
        2: "<image> rồi <image>?\nq <image>",
        3: "<image><image>",
        4: "<image><image>",
    }


def test_placeholders_stand_where_pictures_belong(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    tagged, _ = tables(workspace)
    assert tagged[2]["query"] == "<image>đọc đi"
    assert tagged[4]["query"] == "<image>màu?"
    assert [turn["text"] for turn in tagged[4]["history"]] == ["ngắn", "<image>đây?", "mèo"]
    assert tagged[5]["query"] == "thẻ <image> là gì?"
    assert [side["text"] for side in tagged[5]["negatives"]] == ["sai rồi", "<image>hình", "<image>ảnh"]
    assert tagged[6]["target"] == "<image>hai <image>"
    assert tagged[6]["negatives"] is None
    assert {line: row["prefix"] for line, row in tagged.items()} == {
        line: PAIRS[line - 1]["task"] for line in tagged
    }


def test_lengths_are_those_of_encoded_items_and_hashes_those_of_repaired_sides(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    tagged, _ = tables(workspace)
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    for row in tagged.values():
        task = Task(row["task"])
        target_prefix = task if task is Task.TEXT_PAIR else None
        history = tuple(Turn(**turn) for turn in row["history"] or ())
        images = tuple(PICTURES[identity] for identity in row["query_images"])
        query = processor.encode(Item(row["query"], images, history, task))
        targets = [(row["target"], row["target_images"])]
        targets += [(side["text"], side["images"]) for side in row["negatives"] or ()]
        others = [
            processor.encode(Item(text, tuple(PICTURES[i] for i in ids), (), target_prefix))
            for text, ids in targets
        ]
        assert (row["query_tokens"], row["query_patches"]) == (query.num_tokens, query.num_patches)
        assert row["target_tokens"] == sum(other.num_tokens for other in others)
        assert row["target_patches"] == sum(other.num_patches for other in others)
        assert row["query_hash"] == side_hash(row["query"], row["query_images"], history)
        assert row["target_hash"] == side_hash(row["target"], row["target_images"])
        assert row["positive_hash"] == key_hash(row["positive_key"])
    assert tagged[8]["query_tokens"] == tiny_processing.max_tokens
    assert tagged[1]["positive_hash"] != 0 == tagged[2]["positive_hash"]


def test_what_has_not_changed_is_reused(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path: Path
) -> None:
    first = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    again = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    assert again.reused
    assert again.data_version == first.data_version
    smaller = tag(SOURCE, replace(tiny_processing, max_tokens=128), tiny_backbone, workspace)
    assert not smaller.reused
    assert smaller.data_version != first.data_version
    curate(workspace, PAIRS[:1], version="v2")
    other = replace(tiny_processing, max_tokens=128)
    assert tag(SOURCE, other, tiny_backbone, workspace).pairs_in == 1
    moved = shutil.copytree(tiny_backbone, tmp_path / "moved")
    assert tag(SOURCE, other, moved, workspace).reused
    layout = moved / "preprocessor_config.json"
    layout.write_text(json.dumps({**json.loads(layout.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    assert not tag(SOURCE, other, moved, workspace).reused
    tokenizer = moved / "tokenizer.json"
    spelled = json.loads(tokenizer.read_text(encoding="utf-8"))
    spelled["model"]["merges"].pop()
    tokenizer.write_text(json.dumps(spelled), encoding="utf-8")
    assert not tag(SOURCE, other, moved, workspace).reused
    (workspace.tagged("s") / "ledger.parquet").unlink()
    assert not tag(SOURCE, other, moved, workspace).reused


def test_the_ledger_shows_the_first_side_that_cannot_be_tagged(
    tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    row = pair(1, Task.INSTR, "chào", "hẹp", target_images=[NARROW], negatives=[
        {"text": "sai", "images": [NARROW]}
    ])  # fmt: skip
    tagged, (refused,), num_cut = tag_rows([row], {NARROW: (900, 1)}, processor)
    assert (tagged, num_cut) == ([], 0)
    assert (refused["rule"], refused["value"]) == ("picture_size", "<image>hẹp")


def test_batches_change_nothing(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings, monkeypatch: Any
) -> None:
    whole = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    monkeypatch.setattr("vipolyqwen_core.corpus.tagging.BATCH_PAIRS", 2)
    stage = read_stage(workspace.curated("s"))
    assert stage is not None
    curate(workspace, [*PAIRS, PAIRS[0]], stage.details["images"], version="v2")
    parts = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    assert (parts.pairs_out, parts.rejected) == (whole.pairs_out + 1, whole.rejected)
    assert parts.details == whole.details


def test_a_source_without_pairs_gives_empty_tables(
    workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    curate(workspace, [])
    summary = tag(SOURCE, tiny_processing, tiny_backbone, workspace)
    assert (summary.pairs_in, summary.pairs_out) == (0, 0)
    assert tables(workspace) == ({}, {})


def test_a_source_that_was_not_curated_is_named(
    tmp_path: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    with pytest.raises(ValueError, match="source 's' has not been curated yet"):
        tag(SOURCE, tiny_processing, tiny_backbone, Workspace(tmp_path))


def test_a_preview_shows_pairs_as_they_would_be_tagged_and_writes_nothing(
    tmp_path: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    PICTURES[RED].save(tmp_path / "red.png")
    (tmp_path / "a.jsonl").write_text(
        '{"data_type": "ocr", "images": ["gone.png"], "question": "q", "answer": "t"}\n'
        "broken\n"
        '{"data_type": "ocr", "images": ["red.png"], "question": "q  &amp;", "answer": "t"}\n'
        '{"data_type": "instruction", "input": [{"role": "system", "content": "s  &amp;"},'
        ' {"role": "user", "content": "i"}], "output": "o"}\n'
    )
    path = str(tmp_path / "a.jsonl")
    source = Source(name="s", format=Format.OWNER_JSONL, paths=(path,), image_root=str(tmp_path))
    before = sorted(tmp_path.iterdir())
    (first, second), refused = preview(source, CurationSettings(), tiny_processing, tiny_backbone)
    assert refused == []
    assert preview(source, CurationSettings(), tiny_processing, tiny_backbone, num_pairs=1) == ([first], [])
    assert second["history"] == [{"role": "system", "text": "s &"}]
    small = CurationSettings(max_image_pixels=100)
    assert preview(source, small, tiny_processing, tiny_backbone) == ([second], [])
    assert (first["line"], first["query"], first["query_images"]) == (3, "<image>q &", [RED])
    assert (first["prefix"], second["prefix"]) == ("ocr", "instr")
    assert first["query_patches"] > 0 == second["query_patches"]
    assert set(first) == {column.name for column in TAGGED}
    assert sorted(tmp_path.iterdir()) == before
