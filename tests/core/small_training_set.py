"""A training set of a few pairs with pictures, written as the factory writes one."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from tests.stored_pictures import store_row
from vipolyqwen_core.contract import TRAINING, Split, Task, Turn
from vipolyqwen_core.corpus.hashing import key_hash, pair_hashes, side_hash
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema

SOURCE = "small"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan", "magenta", "brown")


@dataclass(frozen=True)
class SmallPair:
    """A pair; pictures are named by their number."""

    query: str
    target: str
    task: Task = Task.INSTR
    language: str = "en"
    query_pictures: tuple[int, ...] = ()
    target_pictures: tuple[int, ...] = ()
    history: tuple[Turn, ...] = ()
    score: float | None = None
    positive_key: str | None = None
    component: str | None = None
    split: Split = Split.EVAL


def picture(number: int) -> Image.Image:
    """A disc on a ground; each number gives another picture."""
    image = Image.new("RGB", (64, 48), COLOURS[number % len(COLOURS)])
    place = 4 + 3 * (number // len(COLOURS))
    ImageDraw.Draw(image).ellipse((place, place, place + 24, place + 24), fill="white")
    return image


def some_pairs() -> list[SmallPair]:
    """All five tasks, some in two languages, with dialogues, scores and shared keys."""
    pairs: list[SmallPair] = []
    for i in range(8):
        pairs += [
            SmallPair(f"Say number {i}", f"The number is {i}.", positive_key=f"number-{i}"),
            SmallPair(f"Nói số {i}", f"Con số là {i}.", language="vi", positive_key=f"number-{i}"),
            SmallPair(f"a thing {i}", f"the thing {i}", Task.TEXT_PAIR, score=i / 7),
            SmallPair("<image>What colour is shown?", f"colour {i}", Task.VQA_SINGLE, query_pictures=(i,)),
            SmallPair("<image>Read the number", f"number {i}", Task.OCR, query_pictures=(10 + i,)),
            SmallPair(
                "<image><image>Same?",
                "yes" if i % 2 else "no",
                Task.VQA_MULTI,
                query_pictures=(20 + i, 30 + i),
            ),
        ]
    told = (Turn("user", "Hello"), Turn("assistant", "Hi, how can I help?"))
    pairs.append(SmallPair("Count to three", "One, two, three.", history=told))
    pairs.append(SmallPair("A disc", "<image>", target_pictures=(3,)))
    return [*pairs, *(replace(pair, query=f"again: {pair.query}", split=Split.TRAIN) for pair in pairs[:12])]


def write_training_set(folder: Path, pairs: Iterable[SmallPair]) -> Path:
    """Write `train.arrow`, `eval.arrow`, `images.json` and `stage.json`, and the pictures beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(pairs)
    numbers = sorted({n for pair in pairs for n in (*pair.query_pictures, *pair.target_pictures)})
    rows_of_store = (store_row(picture(number), f"pictures/{number}.png") for number in numbers)
    store = write_images(folder / "images.lance", rows_of_store)
    (folder / "images.json").write_text(json.dumps({SOURCE: store.pin}))
    rows = {number: row for row, number in enumerate(numbers)}
    for split in Split:
        members = [_row(pair, line, rows) for line, pair in enumerate(pairs, 1) if pair.split is split]
        table = pa.Table.from_pylist(members, schema=arrow_schema(TRAINING))
        with pa.ipc.new_file(str(folder / f"{split.value}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    count = len(pairs)
    details = {"sources": {SOURCE: {"version": "source1"}}}
    StageSummary("training_set", "f", f"version-{count}", count, count, {}, details=details).write(folder)
    return folder


def _row(pair: SmallPair, line: int, rows: dict[int, int]) -> dict[str, Any]:
    query_images = [image_id(picture(number)) for number in pair.query_pictures]
    target_images = [image_id(picture(number)) for number in pair.target_pictures]
    return {
        "sample_id": pair_hashes(
            pair.task, pair.query, pair.target, query_images, target_images, pair.history, pair.score
        )[0],
        "source": SOURCE,
        "task": pair.task.value,
        "language": pair.language,
        "query": pair.query,
        "query_images": query_images,
        "history": [turn._asdict() for turn in pair.history] or None,
        "target": pair.target,
        "target_images": target_images,
        "score": pair.score,
        "positive_key": pair.positive_key,
        "file": "small.jsonl",
        "line": line,
        "item": 0,
        "prefix": pair.task.value,
        "query_hash": side_hash(pair.query, query_images, pair.history),
        "target_hash": side_hash(pair.target, target_images),
        "positive_hash": key_hash(pair.positive_key),
        "query_tokens": len(pair.query.split()) + 3 * len(query_images),
        "target_tokens": len(pair.target.split()) + 3 * len(target_images),
        "query_patches": 12 * len(query_images),
        "target_patches": 12 * len(target_images),
        "split": pair.split.value,
        "component": pair.component or f"component-{line}",
        "query_image_rows": [rows[number] for number in pair.query_pictures],
        "target_image_rows": [rows[number] for number in pair.target_pictures],
    }
