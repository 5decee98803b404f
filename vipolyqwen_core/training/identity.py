"""Which run it is: the folder of a training run follows from its data and its settings.

The same data and settings give the same folder, so a finished run is reused and an interrupted one resumes;
any other data or setting starts a run of its own beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vipolyqwen_core.config import Negatives, Recipe, TrainingRun, to_json
from vipolyqwen_core.corpus.hashing import fingerprint
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

MINING = "hard_negatives"
"""Name of the stage that mines."""
MINING_VERSION = 3
"""Version of the code that mines: raised when it would find others."""

TRAINING_VERSION = 2
"""Version of the code that trains: raised when the same data and settings would give other weights."""
TRAINING_SECTIONS = ("model", "processing", "objective", "optimizer")
"""Sections of a recipe that shape the weights, beside `batches`. How a model is judged or exported does not
retrain it."""
CHUNK_BUDGETS = ("chunk_tokens", "chunk_patches", "chunk_pairs")
"""Keys of the section `batches` that shape them only where a chunk is compared with itself alone. Else they
may change within a run, as the number of GPUs may: when memory is short."""
ADDED_KEYS: dict[str, dict[str, Any]] = {
    "objective": {"pooling_entropy_weight": 0.0},
    "batches": {"text_first": False},
}
"""Keys that sections got since, each with the value that trains as the code without the key did. They count
only where they say something else: a run of before stays the same run."""
TRAINING_KEYS = ("epochs", "max_steps", "seed", "precision")
"""Keys of the section `training` that do. Processes, workers and checkpoints may change within a run."""
LATER_SECTIONS = ("evaluation", "registry", "export")
"""Sections that say what becomes of a model once it is trained; they may change for the same run."""

IDENTIFYING = (".json", ".safetensors", ".bin", ".txt")
"""Files of a backbone that decide what it computes."""
SAMPLES, SAMPLED_BYTES = 1024, 1024
"""Pieces of a file that are looked at, and their length. A file of up to a million bytes is read whole."""


def trajectory(run: TrainingRun) -> dict[str, Any]:
    """Everything that decides the weights of a run. Runs that share it are the same run."""
    settings = TypeAdapter(Recipe).dump_python(run.recipe, mode="json")
    for section, added in ADDED_KEYS.items():
        settings[section] = {
            key: value for key, value in settings[section].items() if key not in added or value != added[key]
        }
    mined = {} if run.hard_negatives is None else {"hard_negatives": data_version(run.hard_negatives)}
    batches = settings["batches"]
    if run.recipe.batches.negatives is Negatives.STEP:
        batches = {key: value for key, value in batches.items() if key not in CHUNK_BUDGETS}
    return {
        "code": TRAINING_VERSION,
        "data": data_version(run.training_set),
        **mined,
        **{section: settings[section] for section in TRAINING_SECTIONS},
        "batches": batches,
        "training": {key: settings["training"][key] for key in TRAINING_KEYS},
        "weights": {name: weight for name, weight in sorted(run.source_weights.items()) if weight != 1.0},
        "backbone": _backbone_identity(run.backbone),
    }


def parameters(run: TrainingRun) -> dict[str, Any]:
    """What decides the result of a run, flat: two runs are compared by it. Data by version, not by place."""
    settings = TypeAdapter(Recipe).dump_python(run.recipe, mode="json")
    return flatten(
        {
            "recipe": {key: settings[key] for key in settings if key not in ("name", *LATER_SECTIONS)},
            "backbone": _backbone_identity(run.backbone),
            "training_set": data_version(run.training_set),
            "hard_negatives": None if run.hard_negatives is None else data_version(run.hard_negatives),
            "source_weights": run.source_weights,
        }
    )


def _backbone_identity(backbone: Path) -> str:
    """The name of a backbone, or for a directory, which may be moved, a digest of what it holds.

    Of each large file its size and a million bytes, spread over it, are read: two sets of weights that were
    trained apart differ everywhere. A hub id is a name alone: whoever wants it pinned downloads it.
    """
    if not backbone.is_dir():
        return str(backbone)
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(backbone.iterdir()):
        if path.suffix in IDENTIFYING and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for place in range(0, size, max(SAMPLED_BYTES, size // SAMPLES)):
                    file.seek(place)
                    digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def data_version(folder: Path) -> str | None:
    """The version of a stage's tables; None where the stage has not run."""
    summary = read_stage(folder)
    return None if summary is None else summary.data_version


def identified_run(
    workspace: Workspace,
    recipe: Recipe,
    backbone: Path | str,
    source_weights: Mapping[str, float],
    training_set: Path | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainingRun:
    """The run that trains this recipe on a training set (the workspace's own, unless another is given).

    Weights of sources that the training set does not have count for nothing: somebody may add one to the
    manifest while a run trains, which stays the same run.

    Raises:
        ValueError: there is no training set, or its hard negatives were not mined yet
    """
    training_set = (training_set or workspace.training_set).resolve()
    summary = read_stage(training_set)
    if summary is None:
        raise ValueError(f"no training set at {training_set}: it has no stage.json")
    version, joined = summary.data_version, summary.details["sources"]
    unnamed = TrainingRun(
        recipe=recipe,
        backbone=Path(backbone),
        training_set=training_set,
        output=workspace.runs,
        hard_negatives=mined_for(workspace, recipe, version),
        source_weights={name: weight for name, weight in source_weights.items() if name in joined},
        tags={"data_version": version, "recipe": recipe.name, **(tags or {})},
    )
    identity = json.dumps(trajectory(unnamed), sort_keys=True)
    name = f"{recipe.name}-{hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()}"
    return replace(unnamed, output=workspace.runs / name, run_name=name)


def refuse_other_data(run: TrainingRun) -> None:
    """Refuse to train a run on another version of its training set than its tag `data_version` names.

    Raises:
        ValueError: the training set was built anew since
    """
    named, found = run.tags.get("data_version"), data_version(run.training_set)
    if named is not None and named != found:
        raise ValueError(
            f"run {run.run_name} is one of version {named} of the training set, but {run.training_set} is "
            f"version {found} now: start the run of that one"
        )


def refuse_other_trajectory(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to go on from what other data or settings left in a run's folder.

    Raises:
        ValueError: names the settings that differ, with both values
    """
    old, new = flatten(found), flatten(json.loads(json.dumps(expected)))
    changed = [f"{key}: {there!r} there, {now!r} now" for key, (there, now) in differences(old, new).items()]
    if changed:
        raise ValueError(
            f"{path} belongs to a run with other settings ({'; '.join(changed)}): use another folder, or the "
            "version of the code that began it"
        )


def refuse_built_anew(training_set: Path, version: str | None) -> None:
    """Refuse to go on where the training set was built anew since reading of it began.

    Args:
        version: that it had before anything was read of it
    Raises:
        ValueError: the training set is of another version now
    """
    if data_version(training_set) != version:
        raise ValueError(
            f"{training_set} was built anew meanwhile, by another command: when that has ended, run the same "
            "command again"
        )


def mining_fingerprint(recipe: Recipe, version: str) -> str:
    """What the mined hard negatives of a recipe depend on, but for the model that finds them.

    Args:
        version: of the training set
    """
    return fingerprint(
        MINING, MINING_VERSION, version, to_json(recipe.mining), recipe.objective.positive_score
    )


def mined_for(workspace: Workspace, recipe: Recipe, version: str) -> Path | None:
    """The workspace's mined hard negatives, where a recipe trains with them; None: it trains without.

    Raises:
        ValueError: it does, and those that are there are of another training set or of other settings
    """
    if not recipe.mining.negatives_per_pair:
        return None
    found = read_stage(workspace.hard_negatives)
    if found is None or found.fingerprint != mining_fingerprint(recipe, version):
        state = "are not there" if found is None else "are those of other data or settings"
        raise ValueError(
            f"the hard negatives of recipe {recipe.name!r} {state} ({workspace.hard_negatives}): materialise "
            "hard_negatives, or run `vipolyqwen mine` with this recipe"
        )
    return workspace.hard_negatives.resolve() if found.details["teacher"] else None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two flat mappings whose values differ, in order, with both values; None: it has none."""
    keys = sorted(one.keys() | other.keys())
    both = {key: (one.get(key), other.get(key)) for key in keys}
    return {key: (left, right) for key, (left, right) in both.items() if left != right}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
