"""What the GPU script trains on: Qwen2-VL-2B's shapes with random weights, and a synthetic mix of pairs.

    half     text pairs       30 to 70 tokens a side
    a tenth  instructions     150 to 250 tokens a side
    a fifth  OCR              a picture of 64 to 1,024 visual tokens and 8 to 16 tokens; 16 to 32 tokens
    a fifth  VQA              a picture of 64 to 512 visual tokens and 8 to 16 tokens; 4 to 12 tokens

Each range is drawn from uniformly. Words are syllables in the manner of Vietnamese; the tokenizer is learned
from them, so it is small, while the table of embeddings has its full size. Pictures are JPEGs of
smooth noise, a few pixels off the size that the vision tower wants, so they are decoded and resized.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from tests.stored_pictures import store_row
from vipolyqwen_core.contract import PLAN_INDEX, TRAINING, Task
from vipolyqwen_core.corpus.hashing import pair_hashes, side_hash
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema
from vipolyqwen_core.model.tiny import build_tiny_backbone
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

SOURCE = "synthetic"
VISUAL_TOKEN = 28
"""Side of a visual token in pixels."""
STARTS = "bcdđghklmnpqrstvx"
ENDS = (
    "a", "an", "ang", "anh", "ao", "âm", "ân", "ấy", "át", "ăn", "e", "em", "ép", "ê", "iên", "iểu", "o",
    "ong", "ô", "ông", "ổi", "ơ", "ơi", "u", "ung", "uộc", "ư", "ưng", "ương", "oanh", "uyên", "iết",
)  # fmt: skip
WORDS = tuple(start + end for start in STARTS for end in ENDS)
Range = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """A kind of pair."""

    task: Task
    share: float
    query_tokens: Range
    target_tokens: Range
    visual_tokens: Range | None = None


MIX = (
    Kind(Task.TEXT_PAIR, 0.5, (30, 70), (30, 70)),
    Kind(Task.INSTR, 0.1, (150, 250), (150, 250)),
    Kind(Task.OCR, 0.2, (8, 16), (16, 32), (64, 1024)),
    Kind(Task.VQA_SINGLE, 0.2, (8, 16), (4, 12), (64, 512)),
)
TINY_MIX = (
    Kind(Task.TEXT_PAIR, 0.5, (8, 16), (8, 16)),
    Kind(Task.INSTR, 0.1, (20, 40), (20, 40)),
    Kind(Task.OCR, 0.2, (4, 8), (4, 8), (4, 36)),
    Kind(Task.VQA_SINGLE, 0.2, (4, 8), (4, 8), (4, 16)),
)
"""For the smoke run."""

TEXT_2B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_2B: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "hidden_size": 1536,
    "initializer_range": 0.02,
}


def build_backbone(directory: Path, at_full_size: bool, device: torch.device) -> Path:
    """A directory of Qwen2-VL's files: the tiny one, or one of the 2B model's shapes with random weights."""
    random = np.random.default_rng(0)
    build_tiny_backbone(directory, [" ".join(random.choice(WORDS, 40)) for _ in range(500)])
    if at_full_size:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(full_config(directory), dtype=torch.bfloat16)
        model.save_pretrained(directory)
    return directory


def full_config(directory: Path) -> PreTrainedConfig:
    """The configuration of a tiny backbone with the 2B model's shapes; the tiny tokenizer's ids stay."""
    config: Any = AutoConfig.from_pretrained(directory)
    for part, shapes in ((config.text_config, TEXT_2B), (config.vision_config, VISION_2B)):
        for name, value in shapes.items():
            assert hasattr(part, name), name
            setattr(part, name, value)
    config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    return config


def write_mix(
    folder: Path, processor: ViPolyQwenProcessor, mix: tuple[Kind, ...], num_pairs: int, seed: int = 0
) -> Path:
    """Write a training set of the mix, in the files that the factory writes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    write = _writer(processor, random)
    drafts = []
    for kind in mix:
        for _ in range(round(kind.share * num_pairs)):
            size = None if kind.visual_tokens is None else _picture_size(random, *kind.visual_tokens)
            text = write(kind.query_tokens)
            query = text if size is None else f"<image>{text}"
            drafts.append((kind.task, query, write(kind.target_tokens), size))
    sizes = [size for *_, size in drafts if size is not None]
    with ThreadPoolExecutor() as pool:
        stored = list(pool.map(_picture, sizes, range(len(sizes))))
    store = write_images(folder / "images.lance", iter(stored))
    (folder / "images.json").write_text(json.dumps({SOURCE: store.pin}), encoding="utf-8")
    rows = list(_rows(drafts, stored, processor))
    table = pa.Table.from_pylist(rows, schema=arrow_schema(TRAINING))
    with pa.ipc.new_file(str(folder / "train.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1024)
    index = [
        {
            **{key: row[key] for key in ("sample_id", "task", "source")},
            "tokens": row["query_tokens"] + row["target_tokens"],
            "patches": row["query_patches"],
            "images": len(row["query_images"]),
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(index, schema=arrow_schema(PLAN_INDEX)), folder / "index.parquet")
    StageSummary("training_set", "synthetic", f"synthetic-{seed}", len(rows), len(rows), {}).write(folder)
    return folder


def _writer(processor: ViPolyQwenProcessor, random: np.random.Generator) -> Callable[[Range], str]:
    """A function that writes a text of about as many tokens as a number drawn from a range."""
    measures = processor.measure([" ".join(WORDS)])
    words_a_token = len(WORDS) / int(measures.tokens[0] + measures.truncated_tokens[0])

    def write(tokens: Range) -> str:
        count = random.integers(tokens[0], tokens[1] + 1) * words_a_token
        return " ".join(random.choice(WORDS, max(round(count), 1)))

    return write


def _picture_size(random: np.random.Generator, least: int, most: int) -> tuple[int, int]:
    """Width and height in pixels of a picture of some number of visual tokens."""
    tokens = int(random.integers(least, most + 1))
    rows = max(round((tokens * random.uniform(0.6, 1.6)) ** 0.5), 1)
    columns = max(tokens // rows, 1)
    off = random.integers(-6, 7, 2)
    return columns * VISUAL_TOKEN + int(off[0]), rows * VISUAL_TOKEN + int(off[1])


def _picture(size: tuple[int, int], number: int) -> dict[str, Any]:
    """A row of the image store."""
    noise = np.random.default_rng([1, number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    return store_row(image, f"{number}.jpg", "JPEG", quality=90)


def _rows(
    drafts: list[tuple[Task, str, str, tuple[int, int] | None]],
    stored: list[dict[str, Any]],
    processor: ViPolyQwenProcessor,
) -> Iterator[dict[str, Any]]:
    """Rows of the training table."""
    tasks = [task for task, *_ in drafts]
    asked = processor.measure(
        [query for _, query, _, _ in drafts],
        [[] if size is None else [size] for *_, size in drafts],
        prefixes=tasks,
    )
    told = processor.measure(
        [target for _, _, target, _ in drafts],
        prefixes=[task if task is Task.TEXT_PAIR else None for task in tasks],
    )
    assert not asked.errors, asked.errors
    scores = np.random.default_rng(2).random(len(drafts), dtype=np.float32)
    picture = 0
    for number, (task, query, target, size) in enumerate(drafts):
        images = [] if size is None else [stored[picture]["image_id"]]
        score = float(scores[number]) if task is Task.TEXT_PAIR else None
        yield {
            "sample_id": pair_hashes(task, query, target, images, score=score)[0],
            "source": SOURCE,
            "task": task.value,
            "language": "vi",
            "query": query,
            "query_images": images,
            "target": target,
            "target_images": [],
            "score": score,
            "file": "synthetic",
            "line": number + 1,
            "item": 0,
            "prefix": task.value,
            "query_hash": side_hash(query, images),
            "target_hash": side_hash(target),
            "positive_hash": 0,
            "query_tokens": int(asked.tokens[number]),
            "target_tokens": int(told.tokens[number]),
            "query_patches": int(asked.patches[number]),
            "target_patches": 0,
            "split": "train",
            "component": str(number),
            "query_image_rows": [picture] if images else [],
            "target_image_rows": [],
        }
        picture += len(images)
