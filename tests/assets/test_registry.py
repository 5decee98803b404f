"""The registry on SQLite: aliases, versions of runs, model directories."""

import math
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dagster as dg
import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file, save_file

from assets.embedding_export import embedding_export
from assets.findings import Finding, encodes_unit_vectors
from assets.registered_model import settle
from assets.registry import (
    DECISION_TAG,
    MODEL_TAG,
    NOT_JUDGED_TAG,
    RUN_TAG,
    champion,
    give_alias,
    half_registered,
    keep_model,
    model_folder,
    numbered_version,
    version_of_run,
    version_with_alias,
)
from assets.resources import MlflowResource, RecipeResource, WorkspaceResource
from tests.mlflow_store import mlflow_store, register_model
from vipolyqwen_core.config import EvaluationSettings
from vipolyqwen_core.contract import CHALLENGER, CHAMPION, REGISTERED_MODEL
from vipolyqwen_core.evaluation.promotion import Decision
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.serving.registration import log_registered_model
from vipolyqwen_core.workspace import Workspace

MODEL = Path("model")
"""Stands for a model directory that loads; what is tried of it is tested with real ones."""


@pytest.fixture(autouse=True)
def models_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(model: Path) -> Finding:
        return Finding(passed=True, sentence="") if model == MODEL else encodes_unit_vectors(model)

    monkeypatch.setattr("assets.registered_model.encodes_unit_vectors", loads)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without anything: to make its tables takes seconds, so each test takes a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def client(store: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(store)


def mlflow_of(workspace: Workspace) -> MlflowResource:
    return MlflowResource(home=str(workspace.home))


def register(client: mlflow.MlflowClient, run: str, alias: str | None) -> int:
    """A version; without alias it is half done, as a killed process leaves it."""
    if not client.search_registered_models():
        client.create_registered_model(REGISTERED_MODEL)
    number = int(client.create_model_version(REGISTERED_MODEL, f"file:///{run}").version)
    if alias is not None:
        settle(client, number, {"vipolyqwen.run": run}, Decision(alias, ("because",)), MODEL)
    return number


def test_an_empty_registry_has_no_champion(client: mlflow.MlflowClient) -> None:
    assert champion(client) is None
    assert version_of_run(client, "demo-1", "d") is None
    with pytest.raises(ValueError, match="has no version 7; it has none yet"):
        numbered_version(client, 7)
    register(client, "demo-1", CHAMPION)
    register(client, "demo-2", CHALLENGER)
    with pytest.raises(ValueError, match="has no version 7; it has 1, 2"):
        numbered_version(client, 7)


def test_a_registry_that_does_not_answer_is_not_taken_for_an_empty_one(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MlflowException("502 Bad Gateway")

    monkeypatch.setattr(client, "get_model_version_by_alias", fails)
    with pytest.raises(MlflowException, match="502"):
        champion(client)


def test_a_better_version_takes_over(client: mlflow.MlflowClient) -> None:
    first, second = register(client, "demo-1", CHAMPION), register(client, "demo-2", CHAMPION)
    now = champion(client)
    assert now is not None
    assert (now.number, now.run_name) == (second, "demo-2")
    assert numbered_version(client, first).aliases == ()


def test_a_worse_version_leaves_the_champion_alone(client: mlflow.MlflowClient) -> None:
    first, second = register(client, "demo-1", CHAMPION), register(client, "demo-2", CHALLENGER)
    assert champion(client).number == first
    assert version_with_alias(client, CHALLENGER).number == second
    give_alias(client, first, CHAMPION)
    assert version_with_alias(client, CHALLENGER).number == second


def test_a_challenger_that_is_promoted_is_no_challenger_any_more(client: mlflow.MlflowClient) -> None:
    register(client, "demo-1", CHAMPION)
    second = register(client, "demo-2", CHALLENGER)
    give_alias(client, second, CHAMPION)
    assert champion(client).number == second
    assert version_with_alias(client, CHALLENGER) is None


def test_a_champion_whose_alias_was_taken_away_is_followed_by_no_other(client: mlflow.MlflowClient) -> None:
    first, second = register(client, "demo-1", CHAMPION), register(client, "demo-2", CHAMPION)
    register(client, "demo-3", CHALLENGER)
    client.delete_registered_model_alias(REGISTERED_MODEL, CHAMPION)
    with pytest.raises(dg.Failure, match=f"version {second} was: .* `vipolyqwen rollback {second}`"):
        champion(client)
    client.delete_model_version(REGISTERED_MODEL, str(second))
    with pytest.raises(dg.Failure, match=f"`vipolyqwen rollback {first}`"):
        champion(client)
    register(client, "demo-4", CHAMPION)
    give_alias(client, first, CHAMPION)
    assert champion(client).number == first
    client.delete_registered_model_alias(REGISTERED_MODEL, CHAMPION)
    with pytest.raises(dg.Failure, match=f"`vipolyqwen rollback {first}`"):  # the last one, not the newest
        champion(client)


def test_a_model_that_makes_no_unit_vectors_gets_no_alias(
    client: mlflow.MlflowClient, tmp_path: Path, tiny_model_dir: Path
) -> None:
    first, second = register(client, "demo-1", CHAMPION), register(client, "demo-2", None)
    broken = Path(shutil.copytree(tiny_model_dir, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    (projection,) = [name for name in weights if "projection" in name and name.endswith("weight")]
    weights[projection] = torch.full_like(weights[projection], math.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(dg.Failure, match=f"version {second} gets no alias: .* length nan"):
        settle(client, second, {RUN_TAG: "demo-2"}, Decision(CHAMPION, ("a gain",)), broken)
    assert champion(client).number == first
    assert numbered_version(client, second).aliases == ()
    settle(client, second, {RUN_TAG: "demo-2"}, Decision(CHAMPION, ("a gain",)), tiny_model_dir)
    assert champion(client).number == second


def test_what_was_not_judged_stands_at_the_version(client: mlflow.MlflowClient) -> None:
    first, second = register(client, "demo-1", CHAMPION), register(client, "demo-2", None)
    decision = Decision(CHALLENGER, ("a gain",), ("not judged: too few pairs",))
    version = settle(client, second, {"vipolyqwen.run": "demo-2"}, decision, MODEL)
    assert version.aliases == (CHALLENGER,)
    assert version.tags[NOT_JUDGED_TAG] == "not judged: too few pairs"
    assert version.tags[DECISION_TAG] == "a gain; not judged: too few pairs"
    assert NOT_JUDGED_TAG not in numbered_version(client, first).tags


def test_a_version_that_is_settled_again_keeps_nothing_of_the_first_decision(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    number = register(client, "demo-1", None)
    client.set_model_version_tag(REGISTERED_MODEL, str(number), MODEL_TAG, "d")
    with monkeypatch.context() as patch:
        patch.setattr("assets.registered_model.give_alias", killed)
        decision = Decision(CHALLENGER, ("a gain",), ("few pairs",))
        with pytest.raises(KeyboardInterrupt):
            settle(client, number, {RUN_TAG: "demo-1"}, decision, MODEL)
    assert half_registered(client, "demo-1", "d").tags[NOT_JUDGED_TAG] == "few pairs"
    version = settle(client, number, {RUN_TAG: "demo-1"}, Decision(CHAMPION, ("a gain",)), MODEL)
    assert version.aliases == (CHAMPION,)
    assert {RUN_TAG: "demo-1", DECISION_TAG: "a gain"}.items() <= version.tags.items()
    assert NOT_JUDGED_TAG not in version.tags


def test_a_half_registered_version_is_not_taken_for_the_runs_own(client: mlflow.MlflowClient) -> None:
    number = register(client, "demo-1", None)
    client.set_model_version_tag(REGISTERED_MODEL, str(number), "vipolyqwen.run", "demo-1")
    assert version_of_run(client, "demo-1", "d") is None
    assert half_registered(client, "demo-1", "d") is None, "of which model, nobody knows"
    client.set_model_version_tag(REGISTERED_MODEL, str(number), MODEL_TAG, "d")
    assert half_registered(client, "demo-1", "d").number == number
    whole = register(client, "demo-1", CHAMPION)
    assert version_of_run(client, "demo-1", "d").number == whole


def test_a_version_of_the_same_run_of_another_workspace_is_not_taken_for_the_runs_own(
    client: mlflow.MlflowClient,
) -> None:
    elsewhere = register(client, "demo-1", CHAMPION)
    assert version_of_run(client, "demo-1", "d").number == elsewhere, "from before versions named their model"
    client.set_model_version_tag(REGISTERED_MODEL, str(elsewhere), MODEL_TAG, "other")
    assert version_of_run(client, "demo-1", "d") is None
    own = register(client, "demo-1", CHALLENGER)
    client.set_model_version_tag(REGISTERED_MODEL, str(own), MODEL_TAG, "d")
    assert version_of_run(client, "demo-1", "d").number == own
    assert version_of_run(client, "demo-1", "other").number == elsewhere
    client.delete_model_version_tag(REGISTERED_MODEL, str(elsewhere), DECISION_TAG)
    assert half_registered(client, "demo-1", "d") is None
    assert half_registered(client, "demo-1", "other").number == elsewhere


def test_a_registration_that_is_killed_at_once_is_recognised_and_leaves_no_run_open(
    store: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = []

    def killed(*arguments: object) -> None:
        statuses.append(client.get_run(run.info.run_id).info.status)
        raise KeyboardInterrupt

    with mlflow_store(store):
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("test", str(tmp_path / "artifacts")))
        client = mlflow.MlflowClient()
        with mlflow.start_run() as run:
            pass
        # what MLflow does first when the version stands
        monkeypatch.setattr(mlflow.MlflowClient, "set_logged_model_tags", killed)
        with pytest.raises(KeyboardInterrupt):
            log_registered_model(
                tiny_model_dir,
                metadata_={},
                run_id=run.info.run_id,
                tags={RUN_TAG: "demo-1", MODEL_TAG: "d"},
            )
        assert statuses == ["FINISHED"]
        half = half_registered(client, "demo-1", "d")
        assert half is not None
        assert half.number == 1
        assert version_of_run(client, "demo-1", "d") is None


def test_model_directories_are_kept_by_version(tmp_path: Path) -> None:
    workspace, model = Workspace(tmp_path / "home"), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    kept = keep_model(workspace, model, 3)
    assert kept == model_folder(workspace, 3, None) == model_folder(workspace, 3, model_digest(model))
    assert kept == workspace.models / "v3"
    assert (workspace.models / "v3" / "config.json").read_text() == "{}"


def test_a_model_directory_that_is_missing_here_comes_from_the_registry(
    store: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace, artifacts = Workspace(tmp_path / "home"), tmp_path / "artifacts"
    with mlflow_store(store):
        register_model(tiny_model_dir, mlflow.create_experiment("test", str(artifacts)))
        assert model_folder(workspace, 1, model_digest(tiny_model_dir)) == workspace.models / "v1"
        assert model_digest(workspace.models / "v1") == model_digest(tiny_model_dir)
        shutil.rmtree(artifacts)
        model_folder(workspace, 1, None)  # it stands
        shutil.rmtree(workspace.models / "v1")
        with pytest.raises(ValueError, match="cannot give the files of version 1"):
            model_folder(workspace, 1, None)
        with pytest.raises(ValueError, match=r"cannot give the files of version 3: .*not found"):
            model_folder(workspace, 3, None)
    assert [*workspace.models.iterdir()] == []


def test_a_version_of_another_registry_stands_beside_that_of_the_same_number(
    store: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace, before = Workspace(tmp_path / "home"), tmp_path / "before"
    before.mkdir()
    (before / "config.json").write_text("{}")
    kept, digest = keep_model(workspace, before, 1), model_digest(tiny_model_dir)
    with mlflow_store(store):
        register_model(tiny_model_dir, mlflow.create_experiment("test", str(tmp_path / "artifacts")))
        found = model_folder(workspace, 1, digest)
        assert model_digest(found) == digest
        assert found == model_folder(workspace, 1, digest) == keep_model(workspace, tiny_model_dir, 1)
        assert kept == model_folder(workspace, 1, model_digest(before))
        shutil.rmtree(kept)
        with pytest.raises(ValueError, match="version 1 of the registry is another model"):
            model_folder(workspace, 1, model_digest(before))
    assert {path.name for path in workspace.models.iterdir()} == {f"v1-{digest[:8]}"}


@pytest.mark.parametrize("copied", [True, False])
def test_the_registry_of_a_moved_workspace_has_its_files(
    empty_store: Path, tmp_path: Path, tiny_model_dir: Path, copied: bool
) -> None:
    before, after = Workspace(tmp_path / "before"), Workspace(tmp_path / "sau này, 100 %")
    before.home.mkdir()
    shutil.copy(empty_store, before.mlflow_database)
    with mlflow_store(before.mlflow_uri):
        experiment = mlflow_of(before).connect().get_experiment_by_name("vipolyqwen")
        run_id = register_model(tiny_model_dir, experiment.experiment_id).run_id
    shutil.copytree(before.home, after.home)
    if not copied:
        shutil.rmtree(before.home)
    there = {*before.home.rglob("*")}
    with mlflow_store(after.mlflow_uri):
        client = mlflow_of(after).connect()
        assert model_digest(model_folder(after, 1, None)) == model_digest(tiny_model_dir)
        client.log_text(run_id, "text", "late.txt")
        experiment = client.get_experiment_by_name("vipolyqwen")
        assert experiment.artifact_location == after.mlflow_artifacts.as_uri()
        assert {*before.home.rglob("*")} == there
        assert [*after.mlflow_artifacts.rglob("late.txt")]


@pytest.mark.parametrize("spell", [str, Path.as_uri])
def test_a_place_that_a_training_alone_chose_follows_a_move(
    empty_store: Path, tmp_path: Path, spell: Callable[[Path], str]
) -> None:
    after = Workspace(tmp_path / "after")
    after.home.mkdir()
    shutil.copy(empty_store, after.mlflow_database)
    with mlflow_store(after.mlflow_uri):
        mlflow.create_experiment("vipolyqwen", spell(tmp_path / "before" / "mlartifacts"))
        found = mlflow_of(after).connect().get_experiment_by_name("vipolyqwen")
        assert found.artifact_location == after.mlflow_artifacts.as_uri()


@pytest.mark.parametrize("tables", [[], ["experiments", "runs"]])
def test_a_store_that_mlflow_has_not_completed_is_left_to_it(tmp_path: Path, tables: list[str]) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table} (name, artifact_location, artifact_uri)")
            connection.execute(f"INSERT INTO {table} VALUES ('vipolyqwen', 'file:///gone/mlartifacts', '')")
    before = database.read_bytes()
    mlflow_of(Workspace(tmp_path)).prepare_own()
    assert database.read_bytes() == before


def test_places_that_somebody_chose_stay(empty_store: Path, store: str, tmp_path: Path) -> None:
    with mlflow_store(store):  # a database that two workspaces share
        for name in ("one", "other"):
            client = mlflow_of(Workspace(tmp_path / name)).connect()
            found = client.get_experiment_by_name("vipolyqwen")
            assert found.artifact_location == (tmp_path / "one" / "mlartifacts").as_uri()
    place = Workspace(tmp_path / "own")
    place.home.mkdir()
    shutil.copy(empty_store, place.mlflow_database)
    with mlflow_store(place.mlflow_uri):
        mlflow.create_experiment("vipolyqwen", "s3://bucket/mlartifacts")
        found = mlflow_of(place).connect().get_experiment_by_name("vipolyqwen")
        assert found.artifact_location == "s3://bucket/mlartifacts"


def test_a_run_that_the_store_does_not_have_is_named_with_its_folder(store: str, tmp_path: Path) -> None:
    with mlflow_store(store):
        resource = mlflow_of(Workspace(tmp_path / "home"))
        experiment = resource.connect().get_experiment_by_name("vipolyqwen").experiment_id
        run = resource.connect().create_run(experiment).info.run_id
        resource.refuse_unknown_run(run, tmp_path / "runs" / "demo")
        with pytest.raises(dg.Failure, match=r"has no run 0a1b, which .*runs/demo .* remove the folder"):
            resource.refuse_unknown_run("0a1b", tmp_path / "runs" / "demo")
        resource.connect().delete_run(run)  # as the page of MLflow does it
        with pytest.raises(dg.Failure, match=rf"{run} of MLflow, .*runs/demo was .* deleted: restore it"):
            resource.refuse_unknown_run(run, tmp_path / "runs" / "demo")
        resource.connect().restore_run(run)
        resource.refuse_unknown_run(run, tmp_path / "runs" / "demo")


def test_an_evaluation_says_by_which_settings_it_was_and_leaves_the_run_ended(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir()
    with mlflow_store(store):
        resource = mlflow_of(Workspace(tmp_path / "home"))
        client = resource.connect()
        run_id = client.create_run(client.get_experiment_by_name("vipolyqwen").experiment_id).info.run_id
        client.set_terminated(run_id, "FINISHED", end_time=1_000)
        for mrr, settings in (
            (0.5, EvaluationSettings(min_pairs=30)),
            (0.6, EvaluationSettings(min_pairs=40)),
        ):
            resource.log_evaluation(run_id, {"mrr@10": mrr}, settings, tmp_path / "report")
        found = client.get_run(run_id)
        assert found.data.metrics == {"mrr_at_10": 0.6}
        assert found.data.tags["recipe.evaluation.min_pairs"] == "40"
        assert (found.info.status, found.info.end_time) == ("FINISHED", 1_000)


def test_an_export_without_any_alias_says_how_to_give_it_back(store: str, tmp_path: Path) -> None:
    with (
        mlflow_store(store),
        pytest.raises(dg.Failure, match=r"somebody took .* `vipolyqwen rollback VERSION`"),
    ):
        embedding_export(
            workspace=WorkspaceResource(home=str(tmp_path)),
            recipe=RecipeResource(name="demo"),
            mlflow=mlflow_of(Workspace(tmp_path / "home")),
        )
