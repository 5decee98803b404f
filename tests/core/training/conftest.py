"""A training set of a few dozen rows over all five tasks, with tiny pictures, as the factory writes it."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core.training.training_files import WrittenPair, write_training_files
from tests.mlflow_store import mlflow_store
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
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.processing.packing import PackedBatch, pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor

WORDS = ("phở", "hóa đơn", "total", "circle", "blue", "square", "三角形", "receipt", "hồ", "price")
NUM_PICTURES = 12


def write_training_set(
    folder: Path, processor: ViPolyQwenProcessor, num_rows: int = 48, data_version: str = "data1"
) -> Path:
    """Write the files of a training set; row i has task i % 5."""
    pictures = [_picture(number) for number in range(NUM_PICTURES)]
    pairs = [_pair(number) for number in range(num_rows + num_rows // 4)]
    return write_training_files(folder, processor, pictures, pairs[:num_rows], pairs[num_rows:], data_version)


def _picture(number: int) -> Image.Image:
    random = np.random.default_rng(number)
    width, height = int(random.integers(28, 90)), int(random.integers(28, 90))
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _pair(number: int) -> WrittenPair:
    """A pair whose target repeats words of its query, so that there is something to learn."""
    random = np.random.default_rng([7, number])
    task = list(Task)[number % 5]
    words = " ".join(random.choice(WORDS, 4))
    count = {Task.OCR: 1, Task.VQA_SINGLE: 1, Task.VQA_MULTI: 2}.get(task, 0)
    return WrittenPair(
        task,
        query="<image>" * count + f"question {number}: {words}",
        target=f"answer {number}: {words}",
        pictures=tuple(random.choice(NUM_PICTURES, count, replace=False).tolist()),
        history=(Turn("user", "hello"), Turn("assistant", "what is it?")) if number % 10 == 1 else (),
        negatives=(f"not {words}", f"wrong {number}") if number % 10 == 2 else (),
        score=float(np.float32(random.random())) if task is Task.TEXT_PAIR else None,
    )


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
) -> Iterator[Callable[..., TrainingRun]]:
    """Settings of a run of 2 epochs of 3 steps of 16 pairs in chunks of 8; keywords change a section."""
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))  # commands settle it for good
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

    # a checkpoint logs dozens of lines for debugging, which bury what a failed test has to say
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
    with mlflow_store(mlflow_uri):
        yield make


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
