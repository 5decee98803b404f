"""Which run it is: the folder of a training run follows from its data and its settings.

The same data and settings give the same folder, so a finished run is reused and an interrupted one resumes;
any other data or setting starts a run of its own beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vipolyqwen_core.config import Recipe, TrainingRun
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

TRAINING_SECTIONS = ("model", "processing", "objective", "batches", "optimizer")
"""Sections of a recipe that shape the weights. How a model is judged or exported does not retrain it."""

TRAINING_KEYS = ("epochs", "max_steps", "seed", "precision")
"""Keys of the section `training` that do. Processes, workers and checkpoints may change within a run."""


def trajectory(run: TrainingRun) -> dict[str, Any]:
    """Everything that decides the weights of a run. Runs that share it are the same run."""
    summary = read_stage(run.training_set)
    data_version = None if summary is None else summary.data_version
    return _trajectory(run.recipe, run.backbone, data_version, run.source_weights)


def _trajectory(
    recipe: Recipe, backbone: Path | str, data_version: str | None, source_weights: Mapping[str, float]
) -> dict[str, Any]:
    settings = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    return {
        "data": data_version,
        **{section: settings[section] for section in TRAINING_SECTIONS},
        "training": {key: settings["training"][key] for key in TRAINING_KEYS},
        "weights": {name: weight for name, weight in sorted(source_weights.items()) if weight != 1.0},
        "backbone": Path(backbone).name,  # the tiny one has its digest in its name
    }


def identified_run(
    workspace: Workspace,
    recipe: Recipe,
    backbone: Path | str,
    source_weights: Mapping[str, float],
    training_set: Path | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainingRun:
    """The run that trains this recipe on a training set (the workspace's own, unless another is given).

    Raises:
        ValueError: there is no training set
    """
    training_set = (training_set or workspace.training_set).resolve()
    summary = read_stage(training_set)
    if summary is None:
        raise ValueError(f"no training set at {training_set}: it has no stage.json")
    identity = _trajectory(recipe, backbone, summary.data_version, source_weights)
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4).hexdigest()
    name = f"{recipe.name}-{digest}"
    return TrainingRun(
        recipe=recipe,
        backbone=Path(backbone),
        training_set=training_set,
        output=workspace.runs / name,
        source_weights=dict(source_weights),
        run_name=name,
        tags={"data_version": summary.data_version, "recipe": recipe.name, **(tags or {})},
    )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
