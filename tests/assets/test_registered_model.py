"""What a registered version carries."""

from pathlib import Path

import dagster as dg
import pytest

from assets.registered_model import checks_outcome, origin_tags
from orchestration.definitions import build_definitions
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace


def test_the_outcome_of_checks_is_that_of_those_that_were_made(tmp_path: Path) -> None:
    model = build_definitions(Workspace(tmp_path), None, "demo").resolve_job_def("model")
    with dg.DagsterInstance.ephemeral() as instance:
        assert checks_outcome(instance) == "0 passed"
        for name, passed in (("no_leak", True), ("both_splits", False)):
            evaluation = dg.AssetCheckEvaluation(
                dg.AssetKey("training_set"), name, passed, metadata={}, description="so it is"
            )
            instance.report_runless_asset_event(evaluation)
        outcome = "1 passed; failed: training_set.both_splits (ERROR): so it is"
        assert checks_outcome(instance) == outcome
        instance.create_run_for_job(model)  # it waits in the queue
        assert checks_outcome(instance) == outcome


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
