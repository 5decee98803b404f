"""Failures of a run as one sentence."""

import errno
import json
import sqlite3
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException

from orchestration.explanation import explain_failure


def failed_events(asset: dg.AssetsDefinition, *checks: dg.AssetChecksDefinition) -> list[dg.DagsterEvent]:
    result = dg.materialize([asset, *checks], raise_on_error=False)
    assert not result.success
    return list(result.all_events)


def test_a_users_mistake_is_named_with_its_stage_and_source() -> None:
    @dg.asset
    def curated_corpus() -> None:
        raise ValueError("source 'receipts':\n no file matches receipts/*.jsonl")

    sentence = explain_failure(failed_events(curated_corpus), "receipts")
    assert (
        sentence == "curated_corpus of source receipts: source 'receipts': no file matches receipts/*.jsonl"
    )


def test_the_sentence_of_the_stage_is_told_and_not_the_error_of_a_library_that_it_explains() -> None:
    @dg.asset
    def trained_model() -> None:
        try:
            json.loads("broken")
        except ValueError as error:
            raise ValueError("stage.json is damaged: delete it") from error

    sentence = explain_failure(failed_events(trained_model), None)
    assert sentence == "trained_model: stage.json is damaged: delete it"


@pytest.mark.parametrize("files_are_first", [False, True])
def test_a_full_disk_under_mlflow_is_told_with_the_file_and_without_the_statement(
    files_are_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def end_run() -> None:
        with sqlalchemy.create_engine(f"sqlite:///{database}").connect() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE runs (status TEXT)"))
            connection.execute(sqlalchemy.text("PRAGMA max_page_count = 2"))
            try:
                connection.execute(
                    sqlalchemy.text("INSERT INTO runs VALUES (:status)"), {"status": "x" * 9000}
                )
            except sqlalchemy.exc.OperationalError as error:  # as MLflow does it
                raise MlflowException(error) from error

    @dg.asset
    def registered_model() -> None:
        if not files_are_first:
            end_run()
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
        finally:
            end_run()

    sentence = explain_failure(failed_events(registered_model), None)
    reasons = {
        False: f"MLflow's store sqlite:///{database} cannot be used (database or disk is full)",
        True: "OSError: [Errno 28] No space left on device: 'model.safetensors'",
    }
    assert sentence == f"registered_model: {reasons[files_are_first]}"


def test_a_full_disk_under_dagsters_database_is_told_where_it_ends_a_run_between_two_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    full = sqlalchemy.exc.OperationalError(
        "INSERT INTO event_logs", {}, sqlite3.OperationalError("database or disk is full")
    )

    @dg.asset
    def training_set() -> None: ...

    instance = dg.DagsterInstance.ephemeral()
    store = instance.event_log_storage.store_event

    def fails(event: dg.EventLogEntry) -> None:
        if event.dagster_event_type == dg.DagsterEventType.ENGINE_EVENT:
            raise full
        store(event)

    monkeypatch.setattr(instance.event_log_storage, "store_event", fails)
    result = dg.materialize([training_set], instance=instance, raise_on_error=False)
    reason = f"a database of Dagster in {tmp_path / 'dagster'} cannot be used (database or disk is full)"
    assert explain_failure(result.all_events, None) == reason


def test_a_failure_that_was_meant_is_quoted() -> None:
    @dg.asset
    def trained_model() -> None:
        raise dg.Failure("rank 1 died without a traceback")

    assert (
        explain_failure(failed_events(trained_model), None)
        == "trained_model: rank 1 died without a traceback"
    )


def test_a_blocking_check_tells_what_it_found() -> None:
    @dg.asset
    def curated_corpus() -> None: ...

    @dg.asset_check(asset=curated_corpus, blocking=True)
    def nothing_vanishes() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="5 in, 4 out, 0 in the ledger")

    sentence = explain_failure(failed_events(curated_corpus, nothing_vanishes), "receipts")
    expected = "curated_corpus of source receipts: check nothing_vanishes: 5 in, 4 out, 0 in the ledger"
    assert sentence == expected
