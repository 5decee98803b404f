"""Writes the files of a training set as the factory does, for tests and benchmarks of training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.stored_pictures import store_row
from vipolyqwen_core.contract import PLAN_INDEX, TRAINING, Task, Turn
from vipolyqwen_core.corpus.hashing import key_hash, pair_hashes, side_hash
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

SOURCE = "shop"
"""The one source of these training sets."""


@dataclass(frozen=True)
class WrittenPair:
    """A pair; the pictures of its sides are named by their place."""

    task: Task
    query: str
    """With its `<image>` placeholders."""
    target: str
    pictures: tuple[int, ...] = ()
    history: tuple[Turn, ...] = ()
    negatives: tuple[str, ...] = ()
    score: float | None = None
    target_pictures: tuple[int, ...] = ()
    positive_key: str | None = None


def write_training_files(
    folder: Path,
    processor: ViPolyQwenProcessor,
    pictures: Sequence[Image.Image],
    train: Sequence[WrittenPair],
    evaluation: Sequence[WrittenPair] = (),
    data_version: str = "data1",
) -> Path:
    """Write tables, plan index, image store and summary; returns the folder."""
    folder.mkdir(parents=True)
    ids = [image_id(picture) for picture in pictures]
    store = write_images(
        folder / f"{SOURCE}.lance",
        (store_row(picture, f"{identity}.png") for picture, identity in zip(pictures, ids, strict=True)),
    )
    (folder / "images.json").write_text(json.dumps({SOURCE: store.pin}), encoding="utf-8")
    rows = [
        _row(number, pair, split, processor, pictures, ids)
        for split, pairs in (("train", train), ("eval", evaluation))
        for number, pair in enumerate(pairs)
    ]
    for split in ("train", "eval"):
        _write_table(folder / f"{split}.arrow", [row for row in rows if row["split"] == split])
    index = [
        {
            **{key: row[key] for key in ("sample_id", "task", "source")},
            "tokens": row["query_tokens"] + row["target_tokens"],
            "patches": row["query_patches"] + row["target_patches"],
            "images": len(row["query_images"]) + len(row["target_images"]),
        }
        for row in rows
        if row["split"] == "train"
    ]
    pq.write_table(pa.Table.from_pylist(index, schema=arrow_schema(PLAN_INDEX)), folder / "index.parquet")
    details = {"sources": {SOURCE: {"version": "source1"}}}
    StageSummary("training_set", "f", data_version, len(train), len(train), {}, details=details).write(folder)
    return folder


def _row(
    number: int,
    pair: WrittenPair,
    split: str,
    processor: ViPolyQwenProcessor,
    pictures: Sequence[Image.Image],
    ids: Sequence[str],
) -> dict[str, Any]:
    sizes = [pictures[place].size for place in pair.pictures]
    asked = processor.measure([pair.query], [sizes], [pair.history], [pair.task])
    answers = [pair.target, *pair.negatives]
    prefix = pair.task if pair.task is Task.TEXT_PAIR else None
    shown = [[pictures[place].size for place in pair.target_pictures], *([] for _ in pair.negatives)]
    told = processor.measure(answers, shown, prefixes=[prefix] * len(answers))
    images, target_images = ([ids[place] for place in of] for of in (pair.pictures, pair.target_pictures))
    return {
        "sample_id": pair_hashes(
            pair.task, pair.query, pair.target, images, target_images, list(pair.history), pair.score
        )[0],
        "source": SOURCE,
        "task": pair.task.value,
        "language": "en",
        "query": pair.query,
        "query_images": images,
        "history": [turn._asdict() for turn in pair.history] or None,
        "target": pair.target,
        "target_images": target_images,
        "score": pair.score,
        "positive_key": pair.positive_key,
        "negatives": [{"text": text, "images": []} for text in pair.negatives] or None,
        "file": "rows.jsonl",
        "line": number + 1,
        "item": 0,
        "prefix": pair.task.value,
        "query_hash": side_hash(pair.query, images, list(pair.history)),
        "target_hash": side_hash(pair.target, target_images),
        "positive_hash": key_hash(pair.positive_key),
        "query_tokens": int(asked.tokens[0]),
        "target_tokens": int(told.tokens.sum()),
        "query_patches": int(asked.patches[0]),
        "target_patches": int(told.patches.sum()),
        "split": split,
        "component": f"{split}{number}",
        "query_image_rows": list(pair.pictures),
        "target_image_rows": list(pair.target_pictures),
        "negative_image_rows": [[] for _ in pair.negatives] or None,
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """In batches of a few rows, so that rows lie in several."""
    table = pa.Table.from_pylist(rows, schema=arrow_schema(TRAINING))
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
