"""A model directory is known by the files that decide a vector, and these are read once."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.serving.model_directory import model_digest

DECISIVE = ("config.json", "model-00001-of-00001.safetensors", "preprocessor_config.json", "tokenizer.json")


def put(file: Path, text: str, minute: int) -> None:
    """Write a file at a time of its own: within one tick of the clock two would be the same."""
    file.write_text(text)
    os.utime(file, (60 * minute, 60 * minute))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*DECISIVE, "README.md"):
        put(folder / name, name, minute=0)
    return folder


@pytest.mark.parametrize("name", DECISIVE)
def test_a_model_with_another_file_is_another_model(model: Path, name: str) -> None:
    before = model_digest(model)
    put(model / name, name.upper(), minute=1)  # as long as before
    assert model_digest(model) != before
    put(model / name, name, minute=2)
    assert model_digest(model) == before
    (model / name).rename(model / f"a_{name}")
    assert model_digest(model) != before


def test_a_copy_and_another_model_card_are_the_same_model(model: Path, tmp_path: Path) -> None:
    before = model_digest(model)
    (model / "README.md").write_text("judged")
    assert model_digest(model) == model_digest(shutil.copytree(model, tmp_path / "copy")) == before


def test_files_that_stay_as_they_are_are_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    working = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return working(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert len({model_digest(model) for _ in range(3)}) == 1
    assert read == list(DECISIVE)
    put(model / "config.json", "config.json", minute=1)
    model_digest(model)
    assert read == [*DECISIVE, *DECISIVE]
