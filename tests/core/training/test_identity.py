"""The same data, settings and backbone are the same run; any other is another."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.config import (
    EvaluationSettings,
    Negatives,
    Precision,
    Recipe,
    RegistrySettings,
    TrainingRun,
    TrainingSettings,
)
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.recipes import RECIPES, demo
from vipolyqwen_core.training import identity
from vipolyqwen_core.training.identity import (
    ADDED_KEYS,
    identified_run,
    refuse_other_data,
    trajectory,
)
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def run_name(workspace: Workspace, training_set: Path, backbone: Path | str) -> str:
    return identified_run(workspace, demo(), backbone, {}, training_set).run_name


def test_how_a_run_is_computed_or_judged_does_not_make_it_another(
    workspace: Workspace, training_set: Path, tiny_backbone: Path
) -> None:
    changed = TrainingSettings(
        **{**vars(demo().training), "loader_workers": 3, "save_steps": 7, "keep_checkpoints": 9}
    )
    other = identified_run(workspace, replace(demo(), training=changed), tiny_backbone, {}, training_set)
    assert other.run_name == run_name(workspace, training_set, tiny_backbone)
    seeded = replace(demo(), training=replace(demo().training, seed=1))
    assert identified_run(workspace, seeded, tiny_backbone, {}, training_set).run_name != other.run_name


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"embedding_dim": 64}),
        ("processing", {"max_tokens": 100}),
        ("objective", {"margin": 0.3}),
        ("objective", {"pooling_entropy_weight": 0.3}),
        ("batches", {"pairs_per_step": 64}),
        ("batches", {"text_first": True}),
        ("optimizer", {"beta2": 0.9}),
        ("training", {"epochs": 7}),
        ("training", {"max_steps": 3}),
        ("training", {"precision": Precision.BFLOAT16}),
    ],
)
def test_what_shapes_the_weights_makes_another_run(
    workspace: Workspace, training_set: Path, tiny_backbone: Path, section: str, change: dict[str, Any]
) -> None:
    other = replace(demo(), **{section: replace(getattr(demo(), section), **change)})
    named = identified_run(workspace, other, tiny_backbone, {}, training_set).run_name
    assert named != run_name(workspace, training_set, tiny_backbone)


def test_budgets_of_a_chunk_make_another_run_only_where_a_chunk_is_compared_with_itself(
    workspace: Workspace, training_set: Path, tiny_backbone: Path
) -> None:
    for negatives, apart in ((Negatives.CHUNK, 2), (Negatives.STEP, 1)):
        batches = replace(demo().batches, negatives=negatives)
        smaller = replace(batches, chunk_tokens=100, chunk_patches=400, chunk_pairs=2)
        recipes = [replace(demo(), batches=each) for each in (batches, smaller)]
        runs = [identified_run(workspace, each, tiny_backbone, {}, training_set) for each in recipes]
        assert len({run.run_name for run in runs}) == apart


def test_data_and_weights_of_sources_make_another_run_and_how_it_is_judged_does_not(
    workspace: Workspace, training_set: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    name = run_name(workspace, training_set, tiny_backbone)
    rebuilt = shutil.copytree(training_set, tmp_path / "rebuilt")
    stage = read_stage(rebuilt)
    assert stage is not None
    replace(stage, data_version="other").write(rebuilt)
    assert run_name(workspace, rebuilt, tiny_backbone) != name
    for weight in (1.0, 2.0):
        weighted = identified_run(workspace, demo(), tiny_backbone, {"shop": weight}, training_set)
        assert (weighted.run_name == name) == (weight == 1.0)
    to_come = identified_run(workspace, demo(), tiny_backbone, {"shop": 1.0, "added": 2.0}, training_set)
    assert (to_come.run_name, to_come.source_weights) == (name, {"shop": 1.0})
    judged = replace(
        demo(), registry=RegistrySettings(min_gain=0.5), evaluation=EvaluationSettings(confidence=0.9)
    )
    assert identified_run(workspace, judged, tiny_backbone, {}, training_set).run_name == name


@pytest.mark.parametrize(
    ("name", "digest"),
    [("demo", "54efa35d"), ("qwen2vl_2b_h100x4", "9342c493"), ("qwen2vl_2b_h100x4_step", "38024a79")],
)
def test_settings_that_came_later_leave_the_runs_of_before_the_same(name: str, digest: str) -> None:
    nowhere = Path("nowhere")
    run = TrainingRun(recipe=RECIPES[name](), backbone=Path("hub/id"), training_set=nowhere, output=nowhere)
    found = json.dumps(trajectory(run), sort_keys=True)
    assert hashlib.blake2b(found.encode(), digest_size=4).hexdigest() == digest


@pytest.mark.parametrize(("section", "added"), ADDED_KEYS.items())
def test_settings_that_came_later_are_off_by_default(section: str, added: dict[str, Any]) -> None:
    defaults = vars(getattr(Recipe(name="x", backbone="tiny"), section))
    assert {key: defaults[key] for key in added} == added


def test_code_that_gives_other_weights_starts_another_run(
    workspace: Workspace, training_set: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = run_name(workspace, training_set, tiny_backbone)
    monkeypatch.setattr(identity, "TRAINING_VERSION", identity.TRAINING_VERSION + 1)
    assert run_name(workspace, training_set, tiny_backbone) != name


def test_a_run_of_another_version_of_the_training_set_is_refused(
    workspace: Workspace, training_set: Path, tiny_backbone: Path
) -> None:
    run = identified_run(workspace, demo(), tiny_backbone, {}, training_set)
    refuse_other_data(run)
    refuse_other_data(replace(run, tags={}))  # written by hand
    with pytest.raises(ValueError, match=f"{run.run_name} is one of version older .* is version data1 now"):
        refuse_other_data(replace(run, tags={**run.tags, "data_version": "older"}))


def test_a_backbone_is_known_by_what_it_holds(
    workspace: Workspace, training_set: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_backbone, tmp_path / "elsewhere" / "renamed")
    name = run_name(workspace, training_set, tiny_backbone)
    assert run_name(workspace, training_set, moved) == name
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # other weights of the same shape
    weights.write_bytes(content)
    assert run_name(workspace, training_set, moved) != name
    shutil.copy(tiny_backbone / "model.safetensors", weights)
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert run_name(workspace, training_set, moved) != name


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "merges.txt", "pytorch_model.bin"])
def test_one_byte_of_a_small_file_makes_another_backbone(
    workspace: Workspace, training_set: Path, tiny_backbone: Path, tmp_path: Path, file: str
) -> None:
    changed = shutil.copytree(tiny_backbone, tmp_path / tiny_backbone.name) / file
    content = bytearray(changed.read_bytes() if changed.is_file() else b"#version: 0.2\n")
    names = set()
    for last in b"\n ":
        content[-1] = last
        changed.write_bytes(content)
        names.add(run_name(workspace, training_set, changed.parent))
    assert len(names) == 2


def test_a_hub_id_is_known_by_its_whole_name(workspace: Workspace, training_set: Path) -> None:
    names = {run_name(workspace, training_set, owner + "/Qwen2-VL-2B") for owner in ("Qwen", "someone")}
    assert len(names) == 2
