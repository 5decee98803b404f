"""What tests of export and search share: an exported workspace, and other models."""

from pathlib import Path
from typing import Any

import lancedb
import pytest

from tests.core.small_training_set import some_pairs, write_training_set
from vipolyqwen_core.config import ExportSettings, ModelSettings, ProcessingSettings
from vipolyqwen_core.serving.export import ExportSummary, export
from vipolyqwen_core.workspace import Workspace

SETTINGS = ExportSettings(batch_tokens=2048)


def run_export(workspace: Workspace, model: Path, version: str = "1", pairs: Any = None) -> ExportSummary:
    write_training_set(workspace.training_set, some_pairs() if pairs is None else pairs)
    return export(workspace.training_set, model, version, workspace, SETTINGS)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("workspace"))
    run_export(place, tiny_model_dir)
    return place


def another_model(directory: Path, backbone: Path, processing: ProcessingSettings, dim: int) -> Path:
    from vipolyqwen_core.model.modeling import ViPolyQwenModel
    from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

    model = ViPolyQwenModel.from_backbone(backbone, ModelSettings(embedding_dim=dim), processing, seed=1)
    model.save_pretrained(directory)
    ViPolyQwenProcessor.from_backbone(backbone, processing).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def other_model(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return another_model(tmp_path_factory.mktemp("other_model"), tiny_backbone, tiny_processing, dim=32)


@pytest.fixture(scope="module")
def model_of_the_same_shape(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return another_model(tmp_path_factory.mktemp("same_shape"), tiny_backbone, tiny_processing, dim=64)


def lose_rows(table: Path) -> None:
    for file in (table / "data").iterdir():
        file.unlink()


def spoil_rows(table: Path) -> None:
    for file in (table / "data").iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def spoil_versions(table: Path) -> None:
    for file in (table / "_versions").iterdir():
        file.write_bytes(b"")


def lose_versions(table: Path) -> None:
    for file in (table / "_versions").iterdir():
        file.unlink()


DAMAGES = (lose_rows, spoil_rows, spoil_versions, lose_versions)
"""What may happen to the files of a LanceDB table."""


def rows_of(workspace: Workspace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        lancedb.connect(workspace.lancedb).open_table("embeddings").to_arrow().to_pylist()
    )
    return rows
