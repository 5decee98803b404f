"""Tracking: what a run reports, to `metrics.jsonl`, MLflow, a terminal and Dagster. Rank 0 only.

`metrics.jsonl` has one line each `log_steps`; a resumed run drops the lines beyond its checkpoint, so the
file reads as if nothing had happened. MLflow is reached through accelerate's tracker.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker
from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.corpus.tables import written_aside
from vipolyqwen_core.objectives.routing import TermSums
from vipolyqwen_core.training.identity import flatten

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
MLFLOW_RUN_FILE = "mlflow_run_id"
EXPERIMENT = "vipolyqwen"
SECONDS_BETWEEN_REPORTS = 15.0
"""To a log that is no terminal, and to Dagster."""


def loss_metrics(loss: float, terms: TermSums) -> dict[str, float]:
    """`loss`, each term by task as `loss/ocr/info_nce`, and their unweighted sum as `loss/ocr`."""
    metrics = {"loss": loss}
    for (task, term), value in terms.means().items():
        metrics[f"loss/{task.value}"] = metrics.get(f"loss/{task.value}", 0.0) + value.mean
        metrics[f"loss/{task.value}/{term}"] = value.mean
    return metrics


@dataclass
class Throughput:
    """What was done since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    pairs: int = 0
    tokens: int = 0
    filler_tokens: int = 0
    flops: float = 0.0
    waiting_seconds: float = 0.0
    loading_seconds: float = 0.0

    def metrics(self, num_ranks: int, peak_flops: float | None) -> dict[str, float]:
        """Rates over all ranks. Tokens, filler and operations are this rank's; the ranks are loaded alike."""
        seconds = time.perf_counter() - self.started
        metrics = {
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": num_ranks * self.tokens / seconds,
            "useful_token_share": 1.0 - self.filler_tokens / max(self.tokens, 1),
            "waiting_share": self.waiting_seconds / seconds,
            "loading_share": self.loading_seconds / seconds,
        }
        if peak_flops is not None:
            metrics["mfu"] = self.flops / seconds / peak_flops
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
        """Write a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order; a last line that was cut by a kill is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


@contextmanager
def mlflow_run(run: TrainingRun, artifacts: Path | None) -> Iterator[MLflowTracker]:
    """The MLflow run of a training, through accelerate; a resumed training continues its own.

    The run ends as FINISHED or FAILED, as the block does. Its id lies in the training's folder from the
    start, so that also one that was killed before its first checkpoint is continued.
    """
    place = run.output / MLFLOW_RUN_FILE
    run_id = place.read_text(encoding="utf-8") if place.is_file() else None
    tracker = MLflowTracker(
        experiment_name=EXPERIMENT,
        logging_dir=None if artifacts is None else str(artifacts),
        run_id=run_id,
        run_name=run.run_name,
        tags=dict(run.tags),
    )
    tracker.start()
    with tracker.tracker as active:
        if run_id is None:
            settings = TypeAdapter(TrainingRun).dump_python(run, mode="json")
            tracker.store_init_configuration(flatten(settings))
            with written_aside(place) as aside:
                aside.write_text(active.info.run_id, encoding="utf-8")
        yield tracker


def mlflow_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics by names that MLflow allows: it takes no `@`."""
    return {name.replace("@", "_at_"): value for name, value in metrics.items()}


class ProgressReport:
    """Progress with the time left: a bar on a terminal, else a line now and then; also to Dagster."""

    def __init__(
        self, num_steps: int, first_step: int, bar: Progress | None, pipes: PipesContext | None
    ) -> None:
        self.num_steps = num_steps
        self._first_step = first_step
        self._started = self._reported = time.monotonic()
        self._bar = bar
        self._task = bar.add_task("training", total=num_steps, completed=first_step) if bar else None
        self._pipes = pipes

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """So many steps are done; the metrics are those of the last line, where there is a new one."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)
            if metrics is not None:
                self._bar.update(self._task, description=f"loss {metrics['loss']:.4f}")
        now = time.monotonic()
        if metrics is None or (now - self._reported < SECONDS_BETWEEN_REPORTS and step < self.num_steps):
            return
        self._reported = now
        left = (now - self._started) / max(step - self._first_step, 1) * (self.num_steps - step)
        line = (
            f"step {step}/{self.num_steps}, loss {metrics['loss']:.4f}, "
            f"{metrics['pairs_per_second']:.1f} pairs/s, {left / 60:.1f} minutes left"
        )
        if self._bar is None:
            logger.info(line)
        self.tell_dagster(line, {"step": step, "seconds_left": left, **metrics})

    def tell_dagster(self, line: str, details: Mapping[str, Any]) -> None:
        """A line in the log of the Dagster run, and a message that the asset can follow."""
        if self._pipes is not None:
            self._pipes.log.info(line)
            self._pipes.report_custom_message({"kind": "training_progress", **details})


@contextmanager
def progress_report(num_steps: int, first_step: int, is_main: bool) -> Iterator[ProgressReport]:
    """Progress of the run, as rank 0 reports it; the other ranks stay silent.

    Only rank 0 may open Dagster Pipes: the asset takes the messages of one process.
    """
    pipes = open_dagster_pipes() if is_main and PipesEnvVarParamsLoader().is_dagster_pipes_process() else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = None
    if is_main and sys.stderr.isatty():
        bar = Progress(*columns, console=Console(stderr=True))
        bar.start()
    try:
        yield ProgressReport(num_steps, first_step, bar, pipes)
    finally:
        if bar is not None:
            bar.stop()
        if pipes is not None:
            pipes.close()
