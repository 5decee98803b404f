"""Tracking: what a run reports, to `metrics.jsonl`, MLflow, a terminal and Dagster. Rank 0 only.

`metrics.jsonl` has one line each `log_steps`; a resumed run drops the lines beyond its checkpoint, so the
file reads as if nothing had happened.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.mlflow_database import make_mlflow_database
from vipolyqwen_core.objectives.routing import TermSums, slices_of_terms
from vipolyqwen_core.training.mlflow_run import MlflowMetrics, mlflow_run
from vipolyqwen_core.training.ranks import is_first
from vipolyqwen_core.training.result import METRICS_FILE
from vipolyqwen_core.workspace import current_workspace, is_served
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 15.0
"""To a log that is no terminal, and to Dagster."""


def loss_metrics(loss: float, terms: TermSums) -> dict[str, float]:
    """`loss`, each term by task as `loss/ocr/info_nce`, and their unweighted sum as `loss/ocr`.

    Of Matryoshka slices that is the mean, as in `loss`.
    """
    metrics = {"loss": loss}
    slices = slices_of_terms(terms.names)
    for (task, term), mean in terms.means().items():
        metrics[f"loss/{task.value}"] = metrics.get(f"loss/{task.value}", 0.0) + mean / slices[term]
        metrics[f"loss/{task.value}/{term}"] = mean
    return metrics


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, with the number of steps done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, step: int) -> None:
        """Drop lines after a step, and a last line that was cut."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        with written_aside(self.path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line, to the disk: a later checkpoint outlives a power cut, and so does its curve."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order; a last line that was cut by a kill is left out.

    Raises:
        ValueError: another line is damaged; names it
    """
    if not path.is_file():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(whole, start=1)]


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is damaged ({error}): remove the line") from error
    if not isinstance(told, dict) or not isinstance(told.get("step"), int):
        raise ValueError(f"{place} is no line of metrics: remove it")
    return told


class Tracking:
    """Where a run reports to: metrics, progress with the time left. On other ranks than 0 it does nothing."""

    def __init__(
        self,
        num_steps: int,
        first_step: int,
        metrics_file: MetricsFile | None = None,
        mlflow: MlflowMetrics | None = None,
        bar: Progress | None = None,
        pipes: PipesContext | None = None,
    ) -> None:
        self.num_steps = num_steps
        self._first_step = first_step
        self._metrics_file = metrics_file
        self._mlflow = mlflow
        self._bar = bar
        self._bar_task = bar.add_task("training", total=num_steps, completed=first_step) if bar else None
        self._pipes = pipes
        self._started = self._reported = time.monotonic()

    @property
    def mlflow_run_id(self) -> str:
        """Id of the MLflow run; empty on other ranks than 0."""
        return "" if self._mlflow is None else self._mlflow.run_id

    def step_done(self, step: int) -> None:
        """So many steps are done."""
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=step)

    def metrics(self, step: int, metrics: Mapping[str, float], batch: str) -> None:
        """A line of metrics after so many steps; `batch` says which samples the last one had."""
        if self._metrics_file is not None:
            self._metrics_file.append(step, {**metrics, "batch": batch})
        if self._mlflow is not None:
            self._mlflow.log(metrics, step)
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, description=f"loss {metrics['loss']:.4f}")
        now = time.monotonic()
        if now - self._reported < SECONDS_BETWEEN_REPORTS and step < self.num_steps:
            return
        self._reported = now
        left = (now - self._started) / max(step - self._first_step, 1) * (self.num_steps - step)
        line = (
            f"step {step}/{self.num_steps}, loss {metrics['loss']:.4f}, "
            f"{metrics['pairs_per_second']:.1f} pairs/s, {left / 60:.1f} minutes left"
        )
        if self._bar is None and self._metrics_file is not None:
            logger.info(line)
        if self._pipes is not None:
            self._pipes.log.info(line)
            details = {"kind": "training_progress", "step": step, "seconds_left": left, **metrics}
            self._pipes.report_custom_message(details)


@contextmanager
def tracking(run: TrainingRun, num_steps: int, first_step: int) -> Iterator[Tracking]:
    """All reports of a run, as rank 0 makes them. Lines of metrics beyond the first step are dropped.

    Only rank 0 may open Dagster Pipes: the asset takes the messages of one process.
    """
    if not is_first():
        yield Tracking(num_steps, first_step)
        return
    metrics_file = MetricsFile(run.output / METRICS_FILE)
    metrics_file.resume(first_step)
    with ExitStack() as stack:
        pipes = None
        if PipesEnvVarParamsLoader().is_dagster_pipes_process():
            pipes = open_dagster_pipes()
            stack.callback(pipes.close)
        bar = None
        if sys.stderr.isatty():
            done = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            bar = Progress(*done, TimeRemainingColumn(), console=Console(stderr=True))
            stack.enter_context(bar)
        workspace = current_workspace()
        if workspace.mlflow_uri == workspace.own_mlflow_uri:
            make_mlflow_database(workspace.mlflow_database)
        artifacts = None if is_served(workspace.mlflow_uri) else workspace.mlflow_artifacts.as_uri()
        mlflow = stack.enter_context(mlflow_run(run, artifacts, read_metrics(metrics_file.path)))
        yield Tracking(num_steps, first_step, metrics_file, mlflow, bar, pipes)
