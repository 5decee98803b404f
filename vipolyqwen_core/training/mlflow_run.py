"""The MLflow run of a training, through accelerate's tracker.

MLflow is a copy: `metrics.jsonl` has every line. So a store that does not answer, for a minute or for good,
costs a run of hours neither its end nor its time; what has not arrived waits, and what never does is counted.
"""

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from accelerate.tracking import MLflowTracker

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import EXPERIMENT
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.full_disk import SIGNS
from vipolyqwen_core.mlflow_name import mlflow_name
from vipolyqwen_core.training.identity import parameters
from vipolyqwen_core.training.stopping import StoppedEarly
from vipolyqwen_core.workspace import current_workspace, without_login
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

MLFLOW_RUN_FILE = "mlflow_run_id"
UNWRITABLE = (*SIGNS, "readonly database", "unable to open database file")
"""What SQLite says where it cannot write: then the store is there, and nothing in it was deleted."""
SQLALCHEMY_NOTE = "(raised as a result of "
"""Begins a line that SQLAlchemy puts before the reason."""
SECONDS_BETWEEN_TRIES = 60.0
"""Pause behind the tries that MLflow makes by itself for each request."""
SECONDS_TO_ARRIVE = 60.0
"""Patience at the end of a run with the lines that wait to be sent."""


class Line(NamedTuple):
    """Metrics after so many steps."""

    metrics: Mapping[str, float]
    step: int
    milliseconds: int
    """When they were measured: they may arrive much later."""


class DataInput(NamedTuple):
    """Data that a training reads, as MLflow names it."""

    name: str
    place: Path
    version: str
    """MLflow keeps 36 characters."""


class MlflowMetrics:
    """Metrics on their way to a run of MLflow, which a thread sends in their order; close it.

    Lines that MLflow has, of the steps that a resumed training repeats, are not sent again.

    Args:
        reached: the pairs of the last line that MLflow has
    """

    def __init__(self, tracker: MLflowTracker, run_id: str, reached: float) -> None:
        self.run_id = run_id
        self._reached = reached
        self._tracker = tracker
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._given = self._arrived = 0
        self._trouble: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a line when MLflow takes it. Does not wait."""
        if metrics["pairs"] <= self._reached:
            return
        self._given += 1
        named = {mlflow_name(name): value for name, value in metrics.items()}
        self._lines.put(Line(named, step, int(time.time() * 1000)))

    def close(self) -> None:
        """Wait a little for what is on its way, and say what has not arrived."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(SECONDS_TO_ARRIVE)
        if self._arrived < self._given:
            logger.warning(
                "MLflow lacks %d of %d lines of metrics, which metrics.jsonl has: %s",
                self._given - self._arrived,
                self._given,
                self._trouble or "it is slow",
            )

    def _send(self) -> None:
        while (line := self._lines.get()) is not None:
            while not self._arrives(line):
                if self._closing.is_set():
                    return
                self._closing.wait(SECONDS_BETWEEN_TRIES)
            self._arrived += 1

    def _arrives(self, line: Line) -> bool:
        metrics, step, milliseconds = line
        try:
            self._tracker.log(dict(metrics), step=step, run_id=self.run_id, timestamp=milliseconds)
        except Exception as error:  # noqa: BLE001 (whatever a store raises: it is told, and tried again)
            if self._trouble is None:
                logger.warning(
                    "MLflow takes no metrics, training goes on (metrics.jsonl has them): %s", error
                )
            self._trouble = error
            return False
        if self._trouble is not None:
            logger.warning("MLflow takes metrics again, at step %d", step)
            self._trouble = None
        return True


@contextmanager
def mlflow_run(
    run: TrainingRun, artifacts: str | None, earlier: Iterable[Mapping[str, Any]] = ()
) -> Iterator[MlflowMetrics]:
    """Where the metrics of a training go to; a resumed training continues its own run of MLflow.

    `artifacts` is the URI of their folder for an experiment that is new; None: a server knows its own.
    `earlier` are the lines of `metrics.jsonl` so far. Those that MLflow lacks are sent: all where its run is
    new, some where a process was killed while they waited.

    The run ends as the block does: FINISHED, FAILED, or KILLED where it was stopped early. Its id lies in the
    training's folder from the start, so that also one that was killed before its first checkpoint is
    continued. A store that fails only at the end does not change how the block ends: on a full disk both
    fail, and the first is the one to read.

    Raises:
        ValueError: MLflow cannot begin or continue the run; says what helps
    """
    place = run.output / MLFLOW_RUN_FILE
    written = place.read_text(encoding="utf-8") if place.is_file() else ""
    run_id = written or None  # a power cut may leave the file without its content
    tracker = MLflowTracker(
        experiment_name=EXPERIMENT,
        logging_dir=artifacts,
        run_id=run_id,
        run_name=run.run_name,
        tags=dict(run.tags),
    )
    try:
        tracker.start()
    except Exception as error:
        raise ValueError(_refusal(error, place, run_id)) from error
    reached = tracker.tracker.data.metrics.get("pairs", -1.0)
    with _ended():
        if run_id is None:
            tracker.store_init_configuration(parameters(run))
            run_id = str(tracker.tracker.info.run_id)
        if not tracker.tracker.inputs.dataset_inputs:
            _log_data(run_id, data_inputs(run))
        if not written:
            with written_aside(place) as aside:
                aside.write_text(run_id, encoding="utf-8")
        metrics = MlflowMetrics(tracker, run_id, reached)
        for line in earlier:
            numbers = {name: value for name, value in line.items() if isinstance(value, float)}
            metrics.log(numbers, line["step"])
        try:
            yield metrics
        finally:
            metrics.close()


def data_inputs(run: TrainingRun) -> list[DataInput]:
    """The training set, each source that went into it, and mined hard negatives."""
    workspace, inputs = current_workspace(), []
    if (joined := read_stage(run.training_set)) is not None:
        inputs.append(DataInput("training_set", run.training_set, joined.data_version))
        for name, facts in joined.details["sources"].items():
            inputs.append(DataInput(name, workspace.validated(name), facts["version"]))
    if run.hard_negatives is not None and (mined := read_stage(run.hard_negatives)) is not None:
        inputs.append(DataInput("hard_negatives", run.hard_negatives, mined.data_version))
    return inputs


def _log_data(run_id: str, inputs: Iterable[DataInput]) -> None:
    """Name the data of a run, without loading it."""
    from mlflow import MlflowClient, entities  # takes seconds

    context = [entities.InputTag("mlflow.data.context", "training")]
    datasets = [
        entities.Dataset(data.name, data.version, "local", json.dumps({"uri": str(data.place)}))
        for data in inputs
    ]
    MlflowClient().log_inputs(run_id, [entities.DatasetInput(dataset, context) for dataset in datasets])


def _refusal(error: Exception, place: Path, run_id: str | None) -> str:
    """Why a training does not start, for a person: its run, its experiment or the whole store may be gone."""
    lines = [line for line in str(error).splitlines() if not line.startswith(SQLALCHEMY_NOTE)]
    reason = without_login(lines[0]) if lines else type(error).__name__
    if any(sign in reason for sign in UNWRITABLE):
        store = without_login(current_workspace().mlflow_uri)
        return f"MLflow cannot begin or continue the run of this training in {store}: {reason}"
    if run_id is None:
        return (
            f"MLflow cannot begin a run of experiment {EXPERIMENT} ({reason}): restore the experiment, if it "
            "was deleted (`mlflow experiments restore`), or let MLFLOW_TRACKING_URI name another store"
        )
    return (
        f"MLflow cannot continue its run {run_id} of this training ({reason}): restore it (`mlflow runs "
        "restore`, `mlflow experiments restore`, or mlflow.db), let MLFLOW_TRACKING_URI name the store that "
        f"has it, or remove {place}: training then goes on under a new run, which gets the metrics so far"
    )


@contextmanager
def _ended() -> Iterator[None]:
    """End the run of MLflow that is open as the block ends."""
    import mlflow  # takes seconds

    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except StoppedEarly:
        status = "KILLED"
        raise
    finally:
        try:
            mlflow.end_run(status)
        except Exception as error:  # noqa: BLE001 (whatever a store raises: the training has ended before)
            logger.warning("MLflow could not end its run, and goes on to call it running: %s", error)
