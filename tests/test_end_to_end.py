"""The whole factory once, from raw files to search hits: Dagster, accelerate launch, MLflow, LanceDB."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import mlflow
import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from orchestration.definitions import build_definitions
from orchestration.factory import FactoryError, FactoryOutcome, run_factory, run_rollback
from orchestration.instance import open_instance
from orchestration.jobs import ASSET_KEYS, CORPUS_ASSETS
from quality.assignments import split_id
from vipolyqwen_core.config import Recipe, to_json
from vipolyqwen_core.contract import CHALLENGER, CHAMPION, MODEL_FILES, REGISTERED_MODEL
from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.evaluation.results import read_evaluation
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.serving.search import search
from vipolyqwen_core.workspace import Workspace, configure

SCALE = 0.1
SOURCES = ("demo_text_pairs", "demo_ocr", "demo_dialogues")
"""They hold all tasks but one, a table, two files of JSON Lines, pictures and dialogues."""


def small() -> Recipe:
    """The demo's recipe, three steps long."""
    recipe = demo()
    return replace(
        recipe,
        name="small",
        batches=replace(recipe.batches, pairs_per_step=24),
        training=replace(recipe.training, epochs=1, max_steps=3, log_steps=1),
        evaluation=replace(recipe.evaluation, bootstrap_samples=50, min_pairs=5, min_distinct_targets=3),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a small corpus and the manifest and recipe beside it."""
    folder = tmp_path_factory.mktemp("factory")
    manifest = write_demo_corpus(folder / "corpus", scale=SCALE)
    content = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    content["sources"] = [source for source in content["sources"] if source["name"] in SOURCES]
    manifest.write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "recipe.json").write_text(to_json(small()))
    workspace = Workspace(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VIPOLYQWEN_HOME", "MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
            patch.setenv(name, "")
        configure(workspace)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.home / 'mlflow.db'}")
        patch.setenv("DAGSTER_HOME", str(workspace.home / "dagster"))
        yield workspace


def run(place: Workspace) -> FactoryOutcome:
    folder = place.home.parent
    manifest, recipe = folder / "corpus" / "manifest.yaml", folder / "recipe.json"
    return run_factory(place, str(manifest), str(recipe), Console(quiet=True))


@pytest.fixture(scope="module")
def outcome(place: Workspace) -> FactoryOutcome:
    return run(place)


def test_every_asset_is_materialised(place: Workspace, outcome: FactoryOutcome) -> None:
    expected = {(asset, name) for asset in CORPUS_ASSETS for name in SOURCES}
    expected |= {(asset, None) for asset in ASSET_KEYS if asset not in CORPUS_ASSETS}
    assert {(stage.asset, stage.source) for stage in outcome.stages} == expected
    assert not any(stage.reused for stage in outcome.stages)
    with open_instance(place) as instance:
        runs = instance.get_runs()
    assert sorted(run.job_name for run in runs) == ["corpus"] * len(SOURCES) + ["model"]
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}


def test_nothing_vanished_between_the_files_and_the_training_set(
    place: Workspace, outcome: FactoryOutcome
) -> None:
    dirt = json.loads((place.home.parent / "corpus" / "dirt.json").read_text())
    for name in SOURCES:
        curated = next(s for s in outcome.stages if s.asset == "curated_corpus" and s.source == name)
        assert curated.metadata["records read"] == dirt["sources"][name]["records"]
    rows = sum(
        pl.scan_ipc(place.training_set / f"{s}.arrow").select(pl.len()).collect().item()
        for s in ("train", "eval")
    )
    shown = outcome.stage("training_set").metadata
    assert rows == shown["dagster/row_count"]
    assert "assignments" not in shown  # a digest means nothing to a person


def test_the_model_directory_is_whole_and_encodes(place: Workspace, outcome: FactoryOutcome) -> None:
    model = place.models / "v1"
    assert {path.name for path in model.iterdir()} >= set(MODEL_FILES)
    vector = ViPolyQwenEmbedder.from_pretrained(model).encode("Xin chào")
    assert vector.shape == (1024,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    card = (model / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} | " in card and "Apache-2.0" in card for name in SOURCES)


def test_the_registered_version_says_where_it_came_from(place: Workspace, outcome: FactoryOutcome) -> None:
    client = mlflow.MlflowClient(place.mlflow_uri)
    version = client.get_model_version(REGISTERED_MODEL, "1")
    assert version.tags["vipolyqwen.recipe"] == "small"
    with open_instance(place) as instance:
        first = instance.get_runs(dg.RunsFilter(job_name="model"))[-1]
    assert version.tags["vipolyqwen.dagster_run_id"] == first.run_id
    told = mlflow.models.get_model_info(f"models:/{REGISTERED_MODEL}/{version.version}").metadata
    assert told["model_digest"] == version.tags["vipolyqwen.model_digest"]
    assert version.tags["vipolyqwen.run"] == Path(outcome.stage("trained_model").metadata["folder"]).name
    assert version.tags["vipolyqwen.split"] == split_id(place.assignments)
    assert version.tags["vipolyqwen.model_digest"] == model_digest(place.models / "v1")
    assert set(version.aliases) <= {CHAMPION, CHALLENGER}
    training = client.get_run(version.run_id)
    assert {data.dataset.name for data in training.inputs.dataset_inputs} >= {"training_set", "demo_ocr"}
    assert "mrr_at_10" in training.data.metrics
    assert "evaluation/report.html" in [
        file.path for file in client.list_artifacts(version.run_id, "evaluation")
    ]


def test_search_finds_what_was_exported(place: Workspace, outcome: FactoryOutcome) -> None:
    pairs = pl.scan_ipc(place.training_set / "train.arrow").filter(task="text_pair")
    text = pairs.select("target").head(1).collect().item()
    hits = search(place, text, top=5, where="side = 'target'")
    assert hits[0].text == text
    assert hits[0].score == pytest.approx(1, abs=1e-3)


def test_a_second_run_reuses_everything(place: Workspace, outcome: FactoryOutcome) -> None:
    again = run(place)
    assert {stage.name: stage.reused for stage in again.stages} == {
        stage.name: stage.name != "hard_negatives"  # the recipe mines none: there is nothing to reuse
        for stage in outcome.stages
    }
    client = mlflow.MlflowClient(place.mlflow_uri)
    training = client.get_run(client.get_model_version(REGISTERED_MODEL, "1").run_id)
    names = [data.dataset.name for data in training.inputs.dataset_inputs]
    assert len(names) == len(set(names)), names  # told again, MLflow keeps one


def test_a_rollback_makes_a_version_champion(place: Workspace, outcome: FactoryOutcome) -> None:
    folder = place.home.parent
    run_rollback(place, str(folder / "recipe.json"), 1, Console(quiet=True))
    client = mlflow.MlflowClient(place.mlflow_uri)
    assert int(client.get_model_version_by_alias(REGISTERED_MODEL, CHAMPION).version) == 1
    with pytest.raises(FactoryError, match="has no version 9"):
        run_rollback(place, str(folder / "recipe.json"), 9, Console(quiet=True))


@pytest.mark.slow
def test_kinds_of_pooling_are_compared(place: Workspace, outcome: FactoryOutcome) -> None:
    folder = place.home.parent
    definitions = build_definitions(
        place, str(folder / "corpus" / "manifest.yaml"), str(folder / "recipe.json")
    )
    asked = {"compare_poolings": {"config": {"poolings": ["mean", "last"]}}}
    with open_instance(place) as instance:
        result = definitions.resolve_job_def("pooling_ablation").execute_in_process(
            instance=instance, run_config={"ops": asked}
        )
    assert result.success
    found = json.loads((place.evaluations / "pooling_ablation-small" / "ablation.json").read_text())
    assert list(found) == ["attention", "mean", "last"]
    assert found["attention"]["run"] == Path(outcome.stage("trained_model").metadata["folder"]).name
    assert found["attention"]["gain over the baseline"] is None
    mean, low, high = found["mean"]["gain over the baseline"]
    assert low <= mean <= high
    for pooling in found:
        compared = place.evaluations / "pooling_ablation-small" / pooling
        assert "champion" not in (compared / "report.html").read_text("utf-8")
        baseline = read_evaluation(compared).champion
        expected = None if pooling == "attention" else found["attention"]["run"]
        assert (baseline and Path(baseline).parent.name) == expected
    registered = mlflow.MlflowClient(place.mlflow_uri).search_model_versions(f"name = '{REGISTERED_MODEL}'")
    assert [int(version.version) for version in registered] == [1]
