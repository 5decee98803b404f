"""Rolling back: the alias at once, whatever else goes on or is broken; the table when the GPU is free."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import mlflow
import pytest
from rich.console import Console

from assets.registered_model import registered_model
from assets.registry import RUN_TAG, champion, give_alias
from orchestration import pools
from orchestration import rollback as rollback_module
from orchestration.factory import FactoryError, run_rollback
from orchestration.instance import open_instance
from orchestration.run_process import process_tags
from tests.mlflow_store import mlflow_store
from vipolyqwen_core.contract import CHAMPION, REGISTERED_MODEL
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """Two versions, of which the second is champion, and a manifest that cannot be read."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "broken.yaml").write_text("sources: [")
    monkeypatch.setenv("VIPOLYQWEN_SOURCES", str(tmp_path / "broken.yaml"))
    workspace = Workspace(tmp_path / "home")
    workspace.home.mkdir()
    with mlflow_store(f"sqlite:///{workspace.home / 'mlflow.db'}"):
        client = mlflow.MlflowClient()
        client.create_registered_model(REGISTERED_MODEL)
        for number in (1, 2):
            client.create_model_version(REGISTERED_MODEL, f"file:///{number}")
            (workspace.models / f"v{number}").mkdir(parents=True)
            (workspace.models / f"v{number}" / "config.json").write_text("{}")
        give_alias(client, 2, CHAMPION)
        yield workspace


def champion_number() -> int:
    version = champion(mlflow.MlflowClient())
    assert version is not None
    return version.number


def test_the_alias_moves_while_a_training_holds_the_gpu(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.job
    def model() -> None: ...

    seen = []

    def stopped(seconds: float) -> None:
        seen.append(champion_number())
        raise dg.DagsterExecutionInterruptedError

    with open_instance(workspace) as instance:
        run_id = str(uuid4())
        started = dg.DagsterRunStatus.STARTED
        instance.create_run_for_job(model, run_id=run_id, tags=process_tags(run_id), status=started)
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        instance.event_log_storage.claim_concurrency_slot("gpu", run_id, "trained_model")
    monkeypatch.setattr(pools, "time", type("Clock", (), {"sleep": stopped, "monotonic": time.monotonic}))
    console = Console(record=True, file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        run_rollback(workspace, "demo", 1, console)
    assert seen == [1]
    told = console.export_text()
    assert f"run {run_id[:8]} of model holds it with trained_model" in told
    assert "Version 1 is champion." in told


def test_the_table_follows_and_a_failed_export_leaves_the_alias(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []
    console = Console(record=True, file=io.StringIO(), width=200)

    def export_under(version: object, *arguments: object) -> dg.MaterializeResult[None]:
        exported.append(version.number)
        assert f"Version {version.number} is champion." in console.export_text()  # before hours of encoding
        if len(exported) > 1:
            raise ValueError("the disk is full")
        return dg.MaterializeResult(metadata={"rows": 3})

    monkeypatch.setattr(rollback_module, "export_under", export_under)
    run_rollback(workspace, "demo", 1, console)
    assert (champion_number(), exported) == (1, [1])
    with pytest.raises(FactoryError, match="export_champion: the disk is full"):
        run_rollback(workspace, "demo", 2, console)
    assert (champion_number(), exported) == (2, [1, 2])
    shutil.rmtree(workspace.models / "v1")
    with pytest.raises(FactoryError, match="roll_back: "):  # the registry has not got it either
        run_rollback(workspace, "demo", 1, Console(quiet=True))
    with pytest.raises(FactoryError, match="has no version 9"):
        run_rollback(workspace, "demo", 9, Console(quiet=True))
    assert (champion_number(), exported) == (2, [1, 2])


def test_a_version_that_was_never_judged_is_not_gone_to(workspace: Workspace) -> None:
    mlflow.MlflowClient().set_model_version_tag(REGISTERED_MODEL, "1", RUN_TAG, "demo-1")
    with pytest.raises(FactoryError, match=r"version 1 was never judged: .* materialise registered_model"):
        run_rollback(workspace, "demo", 1, Console(quiet=True))
    assert champion_number() == 2


def test_a_rollback_waits_for_no_other_run_and_is_never_repeated_by_itself() -> None:
    assert rollback_module.rollback.tags == {"dagster/priority": "10", "dagster/max_retries": "0"}


def test_nobody_moves_an_alias_while_a_version_is_judged() -> None:
    assert rollback_module.roll_back.pool == registered_model.op.pool == "registry"
