"""Who only encodes needs the base dependencies and nothing of the factory."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = (
    "pyarrow lance lancedb scipy bm25s matplotlib accelerate dagster_pipes mlflow polars dagster "
    "great_expectations sentence_transformers fsspec imagehash psutil"
)

WITHOUT = f"""
import sys

sys.modules.update(dict.fromkeys({BLOCKED.split()!r}))  # None: looks as if it were not installed
"""

PROGRAM = f"""{WITHOUT}
from PIL import Image
from vipolyqwen_core import ViPolyQwenEmbedder
embedder = ViPolyQwenEmbedder.from_pretrained(sys.argv[1])
print(embedder.encode(["một câu", "both"], images=[None, Image.new("RGB", (60, 60))], prefix="ocr").shape)
"""

COMMAND = f"""{WITHOUT}
from vipolyqwen_core.__main__ import main
main()
"""


def vipolyqwen(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, where only the base dependencies are installed."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_encode_runs_on_base_dependencies_alone(tiny_model_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(2, 64)"


def test_the_command_encodes_on_base_dependencies_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.npy"
    done = vipolyqwen(
        "--home", str(tmp_path), "encode", "một câu", "--model", str(tiny_model_dir), "-o", str(vectors)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert vectors.is_file()


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
