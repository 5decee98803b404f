"""A run does not depend on MLflow: metrics wait for a store that does not answer, and hold nothing up."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlflow
import pytest
from accelerate.tracking import MLflowTracker
from mlflow.exceptions import MlflowException

from tests.core.training.interrupted import Killed, KilledAfter
from tests.core.training.training_files import SOURCE
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import EXPERIMENT
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.training import mlflow_run as mlflow_module
from vipolyqwen_core.training.mlflow_run import MlflowMetrics, data_inputs
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import train


class Store:
    """Takes the place of accelerate's tracker; refuses until it is told to answer."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.tries = 0
        self.lines: list[tuple[int | None, Mapping[str, float], int]] = []

    def log(self, values: Mapping[str, float], step: int | None, run_id: str, timestamp: int) -> None:
        self.tries += 1
        if not self.answers.is_set():
            raise ConnectionError("nobody listens")
        self.lines.append((step, values, timestamp))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_module, "SECONDS_BETWEEN_TRIES", 0.01)


def metrics_to(store: Store) -> MlflowMetrics:
    return MlflowMetrics(store, "run1", reached=-1.0)  # type: ignore[arg-type]


def test_metrics_wait_for_a_store_and_arrive_in_order_with_the_time_of_their_step(caplog):
    store = Store()
    metrics = metrics_to(store)
    for step in range(5):
        metrics.log({"recall@1": step / 5, "pairs": step}, step)
    given = time.time() * 1000
    while store.tries < 3:
        time.sleep(0.01)
    store.answers.set()
    metrics.close()
    assert [(step, values) for step, values, _ in store.lines] == [
        (step, {"recall_at_1": step / 5, "pairs": step}) for step in range(5)
    ]
    assert all(moment <= given for _, _, moment in store.lines)
    assert caplog.messages == [
        "MLflow takes no metrics, training goes on (metrics.jsonl has them): nobody listens",
        "MLflow takes metrics again, at step 0",
    ]


def test_what_never_arrives_is_counted_and_not_waited_for(caplog):
    metrics = metrics_to(Store())
    for step in range(5):
        metrics.log({"loss": 1.0, "pairs": step}, step)
    metrics.close()
    lacking = "MLflow lacks 5 of 5 lines of metrics, which metrics.jsonl has: nobody listens"
    assert caplog.messages[-1] == lacking


def test_a_run_whose_store_is_lost_trains_to_its_end(make_run, monkeypatch, caplog):
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody listens")

    run = make_run(training={"epochs": 1})
    monkeypatch.setattr(MLflowTracker, "log", refuse)
    with monkeypatch.context() as lost:
        lost.setattr(mlflow, "end_run", refuse)
        result = train(run, StopSignal())
    mlflow.end_run()
    assert result.steps == len(read_metrics(run.output / "metrics.jsonl")) == 3
    assert "MLflow lacks 3 of 3 lines" in caplog.text
    assert "MLflow could not end its run" in caplog.text


def test_lines_that_waited_when_a_training_was_killed_arrive_with_the_next_process(make_run, monkeypatch):
    sent = MLflowTracker.log

    def refuse_from_the_second(
        tracker: MLflowTracker, values: dict[str, float], step: int, **given: Any
    ) -> None:
        if step > 1:
            raise ConnectionError("nobody listens")
        sent(tracker, values, step=step, **given)

    run = make_run(training={"save_steps": 1})
    with monkeypatch.context() as lost:
        lost.setattr(MLflowTracker, "log", refuse_from_the_second)
        with pytest.raises(Killed):
            train(run, KilledAfter(4))
    mlflow.end_run()
    train(run, StopSignal())
    told = [(line["step"], line["loss"]) for line in read_metrics(run.output / "metrics.jsonl")]
    assert losses_in_mlflow(run) == told
    assert len(told) == 6


def test_mlflow_has_steps_once_that_a_resumed_training_repeats(make_run):
    run = make_run(training={"save_steps": 2})
    with pytest.raises(Killed):
        train(run, KilledAfter(3))
    mlflow.end_run()
    assert [step for step, _ in losses_in_mlflow(run)] == [1, 2, 3]
    train(run, StopSignal())
    assert [step for step, _ in losses_in_mlflow(run)] == [1, 2, 3, 4, 5, 6]


def test_parameters_of_a_run_are_what_decides_its_result(make_run):
    run = replace(make_run(), source_weights={SOURCE: 2.0}, tags={"git_commit": "c"}, run_name="test-1")
    train(run, StopSignal())
    found = mlflow.MlflowClient().get_run((run.output / "mlflow_run_id").read_text()).data.params
    expected = {
        "recipe.backbone": "tiny",
        "recipe.model.embedding_dim": "32",
        "recipe.batches.pairs_per_step": "16",
        "recipe.optimizer.learning_rate": "0.001",
        "recipe.training.epochs": "2",
        f"source_weights.{SOURCE}": "2.0",
        "training_set": "data1",
        "hard_negatives": "None",
    }
    assert found.items() >= expected.items()
    assert "/" not in found["backbone"]
    assert {name.partition(".")[0] for name in found} == {
        *("recipe", "source_weights", "backbone", "training_set", "hard_negatives")
    }
    sections = {name.split(".")[1] for name in found if name.startswith("recipe.")}
    assert sections == {*vars(run.recipe)} - {"name", "evaluation", "registry", "export"}


def test_mlflow_has_the_data_of_a_training_from_its_start_and_once(make_run, tmp_path):
    mined = tmp_path / "hard_negatives"
    mined.mkdir()
    StageSummary("hard_negatives", "f", "mined1", 1, 1, {}).write(mined)
    run = make_run()
    versions = {"training_set": "data1", SOURCE: "source1"}
    assert {data.name: data.version for data in data_inputs(run)} == versions
    both = data_inputs(replace(run, hard_negatives=mined))
    assert {data.name: data.version for data in both} == {**versions, "hard_negatives": "mined1"}
    with pytest.raises(Killed):
        train(run, KilledAfter(0))
    mlflow.end_run()
    assert datasets_in_mlflow(run) == sorted(versions.items())
    train(run, StopSignal())
    assert datasets_in_mlflow(run) == sorted(versions.items())


def test_a_run_that_earlier_code_began_gets_its_data_when_it_goes_on(make_run, monkeypatch):
    run = make_run()
    with monkeypatch.context() as earlier:
        earlier.setattr("vipolyqwen_core.training.mlflow_run._log_data", lambda *_: None)
        with pytest.raises(Killed):
            train(run, KilledAfter(2))
    mlflow.end_run()
    assert datasets_in_mlflow(run) == []
    train(run, StopSignal())
    assert datasets_in_mlflow(run) == [(SOURCE, "source1"), ("training_set", "data1")]


def datasets_in_mlflow(run: TrainingRun) -> list[tuple[str, str]]:
    found = mlflow.MlflowClient().get_run((run.output / "mlflow_run_id").read_text())
    inputs = found.inputs.dataset_inputs
    assert {(tag.key, tag.value) for data in inputs for tag in data.tags} <= {
        ("mlflow.data.context", "training")
    }
    return sorted((data.dataset.name, data.dataset.digest) for data in inputs)


def losses_in_mlflow(run: TrainingRun) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history((run.output / "mlflow_run_id").read_text(), "loss")
    return [(metric.step, metric.value) for metric in history]


def test_a_training_whose_file_of_the_id_was_emptied_goes_on_under_a_new_run(make_run):
    run = make_run()
    with pytest.raises(Killed):
        train(run, KilledAfter(3))
    mlflow.end_run()
    (run.output / "mlflow_run_id").write_bytes(b"")  # as a power cut leaves it
    result = train(run, StopSignal())
    assert result.mlflow_run_id == (run.output / "mlflow_run_id").read_text() != ""
    told = [(line["step"], line["loss"]) for line in read_metrics(run.output / "metrics.jsonl")]
    assert losses_in_mlflow(run) == told
    assert len(told) == 6


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_run_that_mlflow_has_lost_says_what_helps_and_goes_on_under_a_new_one(make_run, is_deleted):
    run, client = make_run(), mlflow.MlflowClient()
    with pytest.raises(Killed):
        train(run, KilledAfter(3))
    mlflow.end_run()
    place = run.output / "mlflow_run_id"
    lost = place.read_text()
    if is_deleted:
        client.delete_run(lost)
    else:
        place.write_text(lost := "0" * 32)
    with pytest.raises(ValueError, match=rf"run {lost} .*restore it .*remove {place}"):
        train(run, StopSignal())
    place.unlink()
    found = train(run, StopSignal()).mlflow_run_id
    assert found != lost
    told = [(line["step"], line["loss"]) for line in read_metrics(run.output / "metrics.jsonl")]
    assert len(told) == 6
    assert losses_in_mlflow(run) == told


@pytest.mark.parametrize("reason", ["database or disk is full", "attempt to write a readonly database"])
def test_a_store_that_takes_nothing_is_no_deleted_experiment(
    make_run, monkeypatch: pytest.MonkeyPatch, reason: str
):
    def refuse(_: MLflowTracker) -> None:
        aside = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
        raise MlflowException(f"{aside}\n(sqlite3.OperationalError) {reason}\n[SQL: INSERT INTO runs]")

    monkeypatch.setattr(MLflowTracker, "start", refuse)
    with pytest.raises(ValueError, match=rf"^MLflow cannot .* in sqlite:.*\.db: \(sqlite3\..*\) {reason}$"):
        train(make_run(), StopSignal())


def test_a_training_whose_experiment_was_deleted_says_what_helps(make_run):
    run, client = make_run(), mlflow.MlflowClient()
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
    client.delete_experiment(experiment)
    try:
        with pytest.raises(ValueError, match=r"cannot begin a run of .*`mlflow experiments restore`"):
            train(run, StopSignal())
    finally:
        client.restore_experiment(experiment)
