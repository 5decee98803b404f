"""A training set of a few dozen rows over all five tasks, with tiny pictures, as the factory writes it."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vipolyqwen_core.config import (
    BatchSettings,
    Distribution,
    ModelSettings,
    OptimizerSettings,
    Precision,
    ProcessingSettings,
    Recipe,
    TrainingRun,
    TrainingSettings,
)
from vipolyqwen_core.contract import PLAN_INDEX, TRAINING, Task, Turn
from vipolyqwen_core.corpus.hashing import sample_id, side_hash
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema
from vipolyqwen_core.processing.packing import PackedBatch, pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor

WORDS = ("phở", "hóa đơn", "total", "circle", "blue", "square", "三角形", "receipt", "hồ", "price")
NUM_PICTURES = 12


def write_training_set(
    folder: Path, processor: ViPolyQwenProcessor, num_rows: int = 48, data_version: str = "data1"
) -> Path:
    """Write the files of a training set; row i has task i % 5."""
    folder.mkdir(parents=True)
    pictures = [_picture(number) for number in range(NUM_PICTURES)]
    ids = [image_id(picture) for picture in pictures]
    version = write_images(folder / "shop.lance", map(_stored, pictures, ids))
    pinned = {"shop": {"path": str(folder / "shop.lance"), "version": version}}
    (folder / "images.json").write_text(json.dumps(pinned), encoding="utf-8")
    rows = [_row(number, processor, pictures, ids) for number in range(num_rows + num_rows // 4)]
    _write_table(folder / "train.arrow", rows[:num_rows])
    _write_table(folder / "eval.arrow", [{**row, "split": "eval"} for row in rows[num_rows:]])
    index = [
        {
            **{key: row[key] for key in ("sample_id", "task", "source")},
            "tokens": row["query_tokens"] + row["target_tokens"],
            "patches": row["query_patches"] + row["target_patches"],
            "images": len(row["query_images"]) + len(row["target_images"]),
        }
        for row in rows[:num_rows]
    ]
    pq.write_table(pa.Table.from_pylist(index, schema=arrow_schema(PLAN_INDEX)), folder / "index.parquet")
    StageSummary("training_set", "f", data_version, num_rows, num_rows, {}).write(folder)
    return folder


def _picture(number: int) -> Image.Image:
    random = np.random.default_rng(number)
    width, height = int(random.integers(28, 90)), int(random.integers(28, 90))
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _stored(picture: Image.Image, identity: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return {
        "image_id": identity,
        "bytes": buffer.getvalue(),
        "format": "PNG",
        "width": picture.width,
        "height": picture.height,
        "phash": "0" * 16,
        "origin": f"{identity}.png",
        "reencoded": False,
    }


def _row(
    number: int, processor: ViPolyQwenProcessor, pictures: list[Image.Image], ids: list[str]
) -> dict[str, Any]:
    """A pair whose target repeats words of its query, so that there is something to learn."""
    random = np.random.default_rng([7, number])
    task = list(Task)[number % 5]
    words = " ".join(random.choice(WORDS, 4))
    count = {Task.OCR: 1, Task.VQA_SINGLE: 1, Task.VQA_MULTI: 2}.get(task, 0)
    rows = random.choice(len(pictures), count, replace=False).tolist()
    query = "<image>" * count + f"question {number}: {words}"
    target = f"answer {number}: {words}"
    history = [Turn("user", "hello"), Turn("assistant", "what is it?")] if number % 10 == 1 else []
    negatives = [f"not {words}", f"wrong {number}"] if number % 10 == 2 else []
    sizes = [pictures[row].size for row in rows]
    asked = processor.measure([query], [sizes], [history], [task])
    answers = [target, *negatives]
    prefix = task if task is Task.TEXT_PAIR else None
    told = processor.measure(answers, prefixes=[prefix] * len(answers))
    score = float(np.float32(random.random())) if task is Task.TEXT_PAIR else None
    images = [ids[row] for row in rows]
    return {
        "sample_id": sample_id(task, query, target, images, (), history, score),
        "source": "shop",
        "task": task.value,
        "language": "en",
        "query": query,
        "query_images": images,
        "history": [turn._asdict() for turn in history] or None,
        "target": target,
        "target_images": [],
        "score": score,
        "negatives": [{"text": text, "images": []} for text in negatives] or None,
        "file": "rows.jsonl",
        "line": number + 1,
        "item": 0,
        "prefix": task.value,
        "query_hash": side_hash(query, images, history),
        "target_hash": side_hash(target),
        "positive_hash": 0,
        "query_tokens": int(asked.tokens[0]),
        "target_tokens": int(told.tokens.sum()),
        "query_patches": int(asked.patches[0]),
        "target_patches": 0,
        "split": "train",
        "component": str(number),
        "query_image_rows": rows,
        "target_image_rows": [],
        "negative_image_rows": [[] for _ in negatives] or None,
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """In batches of a few rows, so that rows lie in several."""
    table = pa.Table.from_pylist(rows, schema=arrow_schema(TRAINING))
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)


@pytest.fixture(scope="session")
def training_set(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """48 training pairs and 12 for evaluation, of one source with 12 pictures."""
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    return write_training_set(tmp_path_factory.mktemp("data") / "training_set", processor)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests: to make its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def make_run(
    training_set: Path,
    tiny_backbone: Path,
    tiny_processing: ProcessingSettings,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., TrainingRun]:
    """Settings of a run of 2 epochs of 3 steps of 16 pairs in chunks of 8; keywords change a section."""
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")

    def make(name: str = "run", **sections: dict[str, Any]) -> TrainingRun:
        recipe = Recipe(
            name="test",
            backbone="tiny",
            model=ModelSettings(embedding_dim=32),
            processing=tiny_processing,
            batches=BatchSettings(pairs_per_step=16, chunk_pairs=8),
            optimizer=OptimizerSettings(learning_rate=1e-3),
            training=TrainingSettings(
                epochs=2,
                precision=Precision.FLOAT32,
                distribution=Distribution.NONE,
                processes=1,
                loader_workers=0,
                activation_checkpointing=False,
                log_steps=1,
                save_steps=2,
            ),
        )
        changed = {key: replace(getattr(recipe, key), **values) for key, values in sections.items()}
        return TrainingRun(
            recipe=replace(recipe, **changed),
            backbone=tiny_backbone,
            training_set=training_set,
            output=tmp_path / name,
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> Any:
    """An untrained model of 32 dimensions."""
    from vipolyqwen_core.model.modeling import ViPolyQwenModel

    return ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=32), tiny_processing)


@pytest.fixture(scope="session")
def packed_text(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> PackedBatch:
    """Two texts."""
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    return pack(processor.encode_batch([Item("a short text"), Item("a text that is somewhat longer")]))
