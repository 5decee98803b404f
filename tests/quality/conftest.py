"""Small sources on disk, as the stages read them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image, ImageDraw

from quality.curate import curate
from quality.judge import PAGE
from quality.training_set import build_training_set
from quality.validate import validate
from vipolyqwen_core.config import ProcessingSettings, Recipe, SplitSettings
from vipolyqwen_core.corpus.manifest import Format, Manifest, Source
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.workspace import Workspace

Records = Iterable[dict[str, Any] | str]
RECIPE = Recipe(name="test", backbone="tiny", split=SplitSettings(eval_share=0.25))
WORDS = [
    "sông",
    "núi",
    "biển",
    "trời",
    "mây",
    "gió",
    "mưa",
    "nắng",
    "hoa",
    "lá",
    "cây",
    "rừng",
    "chim",
    "cá",
    "thuyền",
    "đò",
    "chợ",
    "phố",
    "làng",
    "nhà",
    "cửa",
    "vườn",
    "ao",
    "bầu",
    "bí",
    "lúa",
    "ngô",
    "khoai",
    "sắn",
    "trâu",
    "bò",
    "gà",
    "vịt",
    "mèo",
    "chó",
]


def sentence(number: int, words: int = 14) -> str:
    """A Vietnamese-looking sentence of its own for each number."""
    state, chosen = number * 7919 + 13, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        chosen.append(WORDS[(state >> 8) % len(WORDS)])
    return " ".join(chosen).capitalize() + "."


def scene(number: int, size: tuple[int, int] = (72, 56)) -> Image.Image:
    """A picture of its own for each number."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for step in range(4):
        state = (number * 2654435761 + step * 40503) % 2**32
        x, y, side = state % (size[0] - 20), (state >> 8) % (size[1] - 20), 8 + (state >> 16) % 12
        colour = ((state >> 3) % 200, (state >> 11) % 200, (state >> 19) % 200)
        (draw.rectangle if step % 2 else draw.ellipse)((x, y, x + side, y + side), fill=colour)
    return image


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[..., Source]:
    """Writes JSON Lines of `owner_jsonl` and pictures beside them; gives the source."""

    def write(records: Records, name: str = "corpus", pictures: Sequence[int] = (), **more: Any) -> Source:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for number in pictures:
            scene(number).save(folder / "images" / f"{number}.png")
        return Source(
            name=name,
            format=Format.OWNER_JSONL,
            paths=(str(folder / "data.jsonl"),),
            image_root=str(folder / "images"),
            **more,
        )

    return write


def instruction(number: int, **more: Any) -> dict[str, Any]:
    """A clean instruction of its own for each number."""
    return {"data_type": "instruction", "input": sentence(number), "output": sentence(number + 5000), **more}


def question(number: int, text: str = "Trong ảnh có gì?", picture: int | None = None) -> dict[str, Any]:
    """A clean question on a picture."""
    path = f"{number if picture is None else picture}.png"
    return {"data_type": "vqa_single", "images": [path], "input": text, "output": f"Vật số {number}"}


@pytest.fixture
def build(workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings, monkeypatch):
    """Takes sources from their files to a training set; the suites have tests of their own."""

    def satisfied(suites: object, tables: object, docs: Path) -> list[dict[str, Any]]:
        docs.mkdir(parents=True, exist_ok=True)
        (docs / PAGE).touch()
        return []

    monkeypatch.setattr("quality.validate.judge", satisfied)

    def run(*sources: Source, recipe: Recipe = RECIPE) -> StageSummary:
        for source in sources:
            curate(source, recipe.curation, workspace)
            tag(source, tiny_processing, tiny_backbone, workspace)
            assert validate(source, workspace).details["accepted"]
        return build_training_set(Manifest(sources=sources), recipe, workspace)

    return run


def read(workspace: Workspace, split: str) -> pl.DataFrame:
    """One side of the training set."""
    return pl.read_ipc(workspace.training_set / f"{split}.arrow")


def everything(workspace: Workspace) -> pl.DataFrame:
    """Both sides of the training set."""
    return pl.concat([read(workspace, "train"), read(workspace, "eval")])
