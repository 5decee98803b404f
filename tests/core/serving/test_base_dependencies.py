"""Who only encodes needs the base dependencies and nothing of the factory."""

import subprocess
import sys
from pathlib import Path

BLOCKED = (
    "pyarrow lance lancedb scipy bm25s matplotlib accelerate dagster_pipes mlflow polars dagster "
    "great_expectations sentence_transformers fsspec imagehash psutil"
)

PROGRAM = f"""
import sys

sys.modules.update(dict.fromkeys({BLOCKED.split()!r}))  # None: looks as if it were not installed
from PIL import Image
from vipolyqwen_core import ViPolyQwenEmbedder
embedder = ViPolyQwenEmbedder.from_pretrained(sys.argv[1])
print(embedder.encode(["một câu", "both"], images=[None, Image.new("RGB", (60, 60))], prefix="ocr").shape)
"""


def test_encode_runs_on_base_dependencies_alone(tiny_model_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(2, 64)"
