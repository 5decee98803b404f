"""What a registered version carries."""

from pathlib import Path

import dagster as dg

from assets.registered_model import checks_outcome
from orchestration.definitions import build_definitions
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
