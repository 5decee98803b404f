"""What a registered version carries."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from assets.registered_model import checks_outcome, origin_tags, register, registered_model
from assets.registry import Version
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from orchestration.definitions import build_definitions
from tests.assets.test_evaluation_report import RUN, evaluation
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.evaluation.results import Evaluation
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace


def test_the_outcome_of_checks_is_that_of_those_that_were_made(tmp_path: Path) -> None:
    model = build_definitions(Workspace(tmp_path), None, "demo").resolve_job_def("model")
    place = Workspace(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        assert checks_outcome(instance, place) == "0 passed"
        for asset, name, passed in (
            ("training_set", "no_leak", True),
            ("training_set", "both_splits", False),
            ("embedding_export", "complete", False),  # of the version before
        ):
            evaluation = dg.AssetCheckEvaluation(
                dg.AssetKey(asset), name, passed, metadata={}, description="so it is"
            )
            instance.report_runless_asset_event(evaluation)
        outcome = "1 passed; failed: training_set.both_splits (ERROR): so it is"
        assert checks_outcome(instance, place) == outcome
        instance.create_run_for_job(model)  # it waits in the queue
        assert checks_outcome(instance, place) == outcome


def test_the_outcome_of_checks_names_what_the_sources_of_the_training_set_did_not_meet(
    tmp_path: Path,
) -> None:
    place = Workspace(tmp_path)
    summary = StageSummary("s", "", "v", pairs_in=1, pairs_out=1, rejected={}, details={})
    sources = {"notes": {"version": "v1"}, "demo": {"version": "v2"}}
    replace(summary, details={"sources": sources}).write(place.training_set)
    lines = [
        {"suite": suite, "success": success}
        for suite, success in (("stages", True), ("balance", False), ("stages", False), ("stages", False))
    ]
    replace(summary, details={"expectations": lines}).write(place.validated("notes") / "v1")
    replace(summary, details={"expectations": lines[:1]}).write(place.validated("demo") / "v2")
    replace(summary, details={"expectations": lines}).write(place.validated("demo") / "v3")  # accepted since
    with dg.DagsterInstance.ephemeral() as instance:
        outcome = checks_outcome(instance, place)
    assert outcome == "0 passed; expectations that sources did not meet: notes.balance 1, notes.stages 2"


@pytest.mark.parametrize(
    ("of_training", "commit"),
    [
        ({"git_commit": "a-dirty", "mlflow.source.git.commit": "a"}, "a-dirty"),
        ({"mlflow.source.git.commit": "a"}, "a"),  # started by hand
        ({}, None),
    ],
)
def test_a_version_names_the_commit_that_trained_it(
    tmp_path: Path, of_training: dict[str, str], commit: str | None
) -> None:
    now = {"git_commit": "b", "data_version": "d"}
    run = TrainingRun(recipe=demo(), backbone=tmp_path, training_set=tmp_path, output=tmp_path, tags=now)
    tags = origin_tags(run, of_training)
    assert tags.get("vipolyqwen.git_commit") == commit
    assert (tags["vipolyqwen.data_version"], tags["vipolyqwen.recipe"]) == ("d", "demo")


def test_a_model_of_other_data_is_not_registered(tmp_path: Path) -> None:
    recipe, tags = demo(), {"data_version": "older"}
    run = TrainingRun(recipe=recipe, backbone=tmp_path, training_set=tmp_path, output=tmp_path, tags=tags)
    StageSummary("training_set", "", "newer", pairs_in=1, pairs_out=1, rejected={}, details={}).write(
        tmp_path
    )
    with pytest.raises(ValueError, match="is one of version older of the training set"):
        register("m", run, "d", evaluation(), {})


def test_a_registration_that_was_killed_behind_its_alias_goes_on_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is champion by then, so its evaluation names the champion before it."""
    run = TrainingRun(
        recipe=demo(), backbone=tmp_path, training_set=tmp_path, output=tmp_path, run_name=RUN, tags={}
    )
    named = {"vipolyqwen.run": RUN, "vipolyqwen.model_digest": "d"}
    half = Version(4, ("champion",), named)
    (tmp_path / "README.md").write_text("# Card")
    trained = SimpleNamespace(data=SimpleNamespace(tags={"git_commit": "c1"}))
    client = SimpleNamespace(get_run=lambda _: trained, update_model_version=lambda *_, **__: None)
    settled: list[tuple[int, str]] = []
    crowned: list[bool] = []

    def settle(_client: object, number: int, tags: dict[str, str], *_: object) -> Version:
        settled.append((number, tags["vipolyqwen.git_commit"]))
        return Version(number, ("champion",), {**named, "vipolyqwen.decision": "better"})

    def judged(_folder: Path, _basis: object, is_champion: bool) -> Evaluation:
        crowned.append(is_champion)
        return evaluation()

    for name, found in {
        "assets.registered_model.finished_run": (run, SimpleNamespace(mlflow_run_id="m")),
        "assets.registered_model.model_digest": "d",
        "assets.registered_model.version_of_run": None,
        "assets.registered_model.champion": half,
        "assets.registered_model.half_registered": half,
        "assets.registered_model.evaluation_basis": {},
        "assets.registered_model.keep_model": tmp_path,
        "assets.registered_model.checks_outcome": "1 passed",
        "assets.registered_model.register": 5,
        "assets.resources.ManifestResource.load": SimpleNamespace(sources=()),
        "assets.resources.MlflowResource.connect": client,
        "assets.resources.MlflowResource.run_link": dg.MetadataValue.url("http://mlflow"),
    }.items():
        monkeypatch.setattr(name, lambda *_, found=found: found)
    monkeypatch.setattr("assets.registered_model.judged_evaluation", judged)
    monkeypatch.setattr("assets.registered_model.settle", settle)
    registered_model(
        dg.build_asset_context(),
        workspace=WorkspaceResource(home=str(tmp_path)),
        manifest=ManifestResource(path=None, home=str(tmp_path)),
        recipe=RecipeResource(name="demo"),
        mlflow=MlflowResource(home=str(tmp_path)),
    )
    assert (settled, crowned) == ([(4, "c1")], [True])
