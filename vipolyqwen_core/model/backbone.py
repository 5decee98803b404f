"""Where a backbone lies: a directory, a hub id, or the tiny one, which is made when it is first asked for."""

import logging
from functools import cache
from pathlib import Path
from typing import Final

from vipolyqwen_core.config import Recipe
from vipolyqwen_core.corpus.demo import demo_texts
from vipolyqwen_core.corpus.hashing import fingerprint
from vipolyqwen_core.model.compilation import COMPILED_FAMILY
from vipolyqwen_core.model.modeling import known_backbone
from vipolyqwen_core.model.pooling import POOLINGS
from vipolyqwen_core.model.tiny import VERSION, build_tiny_backbone
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

TINY: Final = "tiny"
ADAPTER: Final = "adapter_*"
"""Weights that are added to those of another model."""


def resolve_backbone(name: str, workspace: Workspace) -> Path | str:
    """The directory of a backbone, absolute, or its hub id.

    `tiny` has the texts of the built-in corpus for its tokenizer; it is made once a workspace, and again only
    when those texts or the code change.

    Raises:
        ValueError: neither `tiny`, nor a directory, nor spelled like a hub id
    """
    if name == TINY:
        directory = tiny_directory(workspace)
        if not directory.is_dir():
            with written_aside(directory) as aside:
                build_tiny_backbone(aside, list(demo_texts()))
            logger.info("made the tiny backbone in %s", directory)
        return directory
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().absolute()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"backbone {name!r}: neither {TINY!r}, nor a directory, nor a hub id (owner/name)")
    return name


def tiny_directory(workspace: Workspace) -> Path:
    """Where the tiny backbone lies, or will."""
    return workspace.backbones / _tiny_name()


@cache
def _tiny_name() -> str:
    """The texts are drawn anew to be hashed, which takes a good part of a second."""
    return f"tiny-{fingerprint(VERSION, *demo_texts())[:16]}"


def check_backbone(recipe: Recipe, workspace: Workspace) -> None:
    """Refuse a backbone that tagging or training would fail on, hours later.

    The weights themselves are looked at when they are loaded.

    Raises:
        ValueError: it is not there or no model, the hub does not answer, its tokenizer is not Qwen2-VL's, its
            family is another, or not one whose layers are to be compiled, it has a sliding window, it is
            quantised, `pooling_heads` does not divide its hidden size, or it is a directory without weights
        OSError: its config.json cannot be read
    """
    if recipe.backbone == TINY:
        return
    backbone = resolve_backbone(recipe.backbone, workspace)
    if isinstance(backbone, Path) and not (backbone / "config.json").is_file():
        raise ValueError(f"backbone {backbone} is no model directory: it has no config.json")
    ViPolyQwenProcessor.from_backbone(backbone, recipe.processing)
    config = known_backbone(backbone)
    hidden_size = config.get_text_config().hidden_size
    POOLINGS[recipe.model.pooling](hidden_size, recipe.model.pooling_heads)  # or refused
    family = config.model_type
    if (recipe.training.compile_layers or recipe.export.compile_layers) and family != COMPILED_FAMILY:
        raise ValueError(f"backbone {backbone} is a {family!r}, whose layers `compile_layers` does not know")
    if isinstance(backbone, Path) and all(file.match(ADAPTER) for file in backbone.glob("*.safetensors")):
        raise ValueError(
            f"backbone {backbone} has no weights: no *.safetensors lies there; merge an adapter before"
        )
