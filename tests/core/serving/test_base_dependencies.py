"""Who only encodes needs the base dependencies and nothing of the factory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BLOCKED = (
    "pyarrow lance lancedb scipy bm25s matplotlib accelerate dagster_pipes mlflow polars dagster "
    "great_expectations sentence_transformers fsspec imagehash psutil"
)

WITHOUT = f"""
import sys

sys.modules.update(dict.fromkeys({BLOCKED.split()!r}))  # None: looks as if it were not installed
"""

COMMAND = f"""{WITHOUT}
from vipolyqwen_core.__main__ import main
main()
"""


def vipolyqwen(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, where only the base dependencies are installed."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_text_and_picture_are_encoded_with_base_dependencies_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    picture, vectors = tmp_path / "picture.png", tmp_path / "vectors.npy"
    Image.new("RGB", (60, 60)).save(picture)
    item = ("một câu", "--image", str(picture), "--prefix", "ocr")
    done = vipolyqwen(
        "--home", str(tmp_path), "encode", *item, "--model", str(tiny_model_dir), "-o", str(vectors)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.load(vectors).shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["search", "a"], "search"),
        (["encode", "a"], "search"),
        (["export", "m", "--model-version", "1"], "search"),
        (["train"], "train"),
        (["run"], "pipeline"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(arguments: list[str], extra: str, tmp_path: Path) -> None:
    done = vipolyqwen("--home", str(tmp_path), *arguments)
    assert done.returncode == 1
    assert f"the extra `{extra}`" in done.stderr
    assert "Traceback" not in done.stderr
