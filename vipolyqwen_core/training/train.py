"""A training run from its settings to its model: set up, resume, loop, export.

output/  run.json         what the run was told
         checkpoints/     step_N/, the newest few and the best
         metrics.jsonl    a line each `log_steps`
         model/           the model directory, when the run is done
         result.json      written last
         errors/          rank<N>.txt, the traceback of a rank that failed
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from transformers.utils.logging import disable_progress_bar

from vipolyqwen_core.config import TrainingRun, to_json
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.tables import written_aside
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.objectives.collapse_watch import collapse_watch
from vipolyqwen_core.objectives.routing import TermSums
from vipolyqwen_core.objectives.task_balance import TaskBalance
from vipolyqwen_core.training.checkpoints import (
    Checkpoints,
    Progress,
    initialise_optimizer,
    refuse_other_trajectory,
)
from vipolyqwen_core.training.distribution import autocast_type, check_wrapped, shard_head, start_accelerator
from vipolyqwen_core.training.engine import Engine, PlannedStep, StepResult
from vipolyqwen_core.training.export import export_model
from vipolyqwen_core.training.flops import FlopCounter, peak_flops
from vipolyqwen_core.training.identity import trajectory
from vipolyqwen_core.training.loading import ChunkLoader, LoadedChunk, load_chunks
from vipolyqwen_core.training.optimizer import build_optimizer
from vipolyqwen_core.training.plan import TrainingPlan, plan_training, read_plan_index
from vipolyqwen_core.training.result import MODEL_FOLDER, TrainingResult, read_result
from vipolyqwen_core.training.rows import TrainingPictures
from vipolyqwen_core.training.schedule import chunk_requests, planned_steps, step_digest
from vipolyqwen_core.training.stopping import StoppedEarly, StopSignal
from vipolyqwen_core.training.tracking import (
    METRICS_FILE,
    MetricsFile,
    ProgressReport,
    Throughput,
    loss_metrics,
    mlflow_names,
    mlflow_run,
    progress_report,
    read_metrics,
)
from vipolyqwen_core.workspace import current_workspace

logger = logging.getLogger(__name__)

MAX_REFUSED_IN_A_ROW = 10


class Diverged(ArithmeticError):
    """The gradient was not finite for many steps in a row."""


@dataclass
class Training:
    """One run in one process: everything that is built once."""

    run: TrainingRun
    accelerator: Accelerator
    plan: TrainingPlan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: Engine
    counter: FlopCounter
    checkpoints: Checkpoints

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return bool(self.accelerator.is_main_process)


def train(run: TrainingRun, stop: StopSignal) -> TrainingResult:
    """Train, or resume, or find that the run is finished already.

    Raises:
        ValueError: the settings, the data or what lies in the output folder do not fit
        StoppedEarly: SIGTERM came; the run is saved
        CheckpointError: a checkpoint could not be written or read
        Diverged: the gradient stopped being finite
    """
    finished = read_result(run.output)
    if finished is not None:
        refuse_other_trajectory(run.output, finished.trajectory, trajectory(run))
        logger.info("this run is finished: %s", run.output / MODEL_FOLDER)
        return finished
    disable_progress_bar()  # of transformers, for each file it reads
    training = prepare(run)
    progress = _resume(training)
    if training.is_main:
        _write_settings(run)
        MetricsFile(run.output / METRICS_FILE).resume(progress.step)
    with progress_report(training.plan.num_steps, progress.step, training.is_main) as report:
        if not training.is_main:
            progress = _loop(training, progress, stop, report, _Silent())
            return _finish(training, progress, "")
        workspace = current_workspace()
        own_store = workspace.mlflow_uri.startswith("sqlite")
        with mlflow_run(run, workspace.mlflow_artifacts if own_store else None) as tracker:
            progress = _loop(training, progress, stop, report, tracker)
            return _finish(training, progress, tracker.tracker.info.run_id)


def prepare(run: TrainingRun) -> Training:
    """Data, model and optimizer, checked and wrapped.

    Raises:
        ValueError: the training set is missing or wrong, or the processes are not those of the settings
    """
    recipe, settings = run.recipe, run.recipe.training
    index = read_plan_index(run.training_set / "index.parquet")
    plan = plan_training(
        index, recipe.batches, run.source_weights, settings.seed, settings.epochs, settings.max_steps
    )
    TrainingPictures(run.training_set).check()
    accelerator = start_accelerator(settings)
    bare = ViPolyQwenModel.from_backbone(run.backbone, recipe.model, recipe.processing, settings.seed)
    if settings.activation_checkpointing:
        bare.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    counter = FlopCounter.of(bare)
    shard_head(bare, settings)
    model, prepared = accelerator.prepare(bare, build_optimizer(bare, recipe.optimizer))
    check_wrapped(model, settings)
    optimizer = prepared.optimizer
    initialise_optimizer(optimizer)
    engine = Engine(
        accelerator,
        model,
        optimizer,
        vision_parameters=list(accelerator.unwrap_model(model).backbone.visual.parameters()),
        objective=recipe.objective,
        negatives=recipe.batches.negatives,
        matryoshka_dims=recipe.model.matryoshka_dims,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        autocast=autocast_type(settings),
        seed=settings.seed,
    )
    checkpoints = Checkpoints(run.output / "checkpoints", settings.keep_checkpoints, trajectory(run))
    return Training(run, accelerator, plan, model, optimizer, engine, counter, checkpoints)


def _resume(training: Training) -> Progress:
    """The state of the newest whole checkpoint, or the beginning."""
    path = training.checkpoints.latest()
    if path is None:
        return Progress()
    progress = training.checkpoints.load(path, training.model, training.optimizer)
    logger.info("resumed from %s", path)
    return progress


def _write_settings(run: TrainingRun) -> None:
    run.output.mkdir(parents=True, exist_ok=True)
    with written_aside(run.output / "run.json") as aside:
        aside.write_text(to_json(run), encoding="utf-8")


class _Silent:
    """What the other ranks report to."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Nothing."""


def _loop(
    training: Training, progress: Progress, stop: StopSignal, report: ProgressReport, tracker: Any
) -> Progress:
    """The steps from where the run stands to its end."""
    run, settings = training.run, training.run.recipe.training
    accelerator = training.accelerator
    meter = Meter(training.counter)
    metrics_file = MetricsFile(run.output / METRICS_FILE)
    stream = meter.watch(_stream(training, progress.step))
    balance = TaskBalance({Task(task): loss for task, loss in progress.running_losses.items()})
    for planned in planned_steps(training.plan, run.recipe, progress.step, accelerator.num_processes):
        started = time.perf_counter()
        meter.begin(planned)
        result = training.engine.step(planned, stream, balance.weights() if balance.running else None)
        progress = _advanced(progress, planned, result, time.perf_counter() - started)
        if run.recipe.objective.dynamic_task_weights and not result.refused:
            balance = balance.updated(_task_losses(result.terms.reduced()))
            progress = replace(progress, running_losses={t.value: v for t, v in balance.running.items()})
        is_last = progress.step == training.plan.num_steps
        if progress.step % settings.log_steps == 0 or is_last:
            metrics = _metrics(training, planned, result, progress, meter)
            if training.is_main:
                digest = step_digest(training.plan, planned.number)
                metrics_file.append(progress.step, {**metrics, "batch": digest})
                tracker.log(mlflow_names(metrics), step=progress.step)
                report.update(progress.step, metrics)
            meter.restart()
        else:
            report.update(progress.step)
        _refuse_divergence(progress, result)
        stopped = stop.asked(accelerator.device)
        is_due = stopped or progress.step % settings.save_steps == 0
        if is_last or (
            is_due and not result.refused
        ):  # a model that has gone wrong must not displace a good one
            training.checkpoints.save(progress, training.model, training.optimizer)
        if stopped and not is_last:
            path = training.checkpoints.latest()
            raise StoppedEarly(
                f"stopped after step {progress.step} of {training.plan.num_steps}; saved: {path}"
            )
    return progress


def _stream(training: Training, first_step: int) -> Iterator[LoadedChunk]:
    """This rank's chunks, in order, from a step on."""
    run, accelerator = training.run, training.accelerator
    recipe = run.recipe
    loader = ChunkLoader(
        run.training_set,
        str(run.backbone),
        recipe.processing,
        recipe.batches.prefix_dropout,
        recipe.training.seed,
    )
    requests = chunk_requests(
        training.plan, recipe, first_step, accelerator.process_index, accelerator.num_processes
    )
    return load_chunks(loader, requests, recipe.training.loader_workers, accelerator.device.type == "cuda")


class Meter:
    """Counts what goes by between two lines of metrics."""

    def __init__(self, counter: FlopCounter) -> None:
        self.counter = counter
        self.throughput = Throughput()
        self._chunks_to_count = 0

    def begin(self, planned: PlannedStep) -> None:
        """A step begins: its chunks count once, even where they are loaded twice."""
        self._chunks_to_count = planned.num_chunks
        self.throughput.pairs += planned.num_pairs

    def restart(self) -> None:
        """A line of metrics has been written."""
        self.throughput = Throughput()

    def watch(self, stream: Iterator[LoadedChunk]) -> Iterator[LoadedChunk]:
        """The chunks as they are, counted."""
        while True:
            asked = time.perf_counter()
            chunk = next(stream, None)
            if chunk is None:
                return
            seen = self.throughput
            seen.waiting_seconds += time.perf_counter() - asked
            seen.loading_seconds += chunk.seconds
            if self._chunks_to_count:
                self._chunks_to_count -= 1
                seen.tokens += chunk.packed.num_tokens
                seen.filler_tokens += chunk.filler_tokens
                seen.flops += self.counter.count(chunk.packed)
            yield chunk


def _advanced(progress: Progress, planned: PlannedStep, result: StepResult, seconds: float) -> Progress:
    return replace(
        progress,
        step=planned.number + 1,
        pairs=progress.pairs + planned.num_pairs,
        seconds=progress.seconds + seconds,
        refused_steps=progress.refused_steps + result.refused,
        refused_in_a_row=progress.refused_in_a_row + 1 if result.refused else 0,
    )


def _task_losses(terms: TermSums) -> dict[Task, float]:
    """The sum of a task's terms, of the tasks that the step had."""
    losses: dict[Task, float] = {}
    for (task, _), value in terms.means().items():
        losses[task] = losses.get(task, 0.0) + value.mean
    return losses


def _metrics(
    training: Training, planned: PlannedStep, result: StepResult, progress: Progress, meter: Meter
) -> dict[str, float]:
    """Metrics of this step, with the rates since the last line. All ranks take part, rank 0 writes them."""
    loss = result.loss.clone()
    if dist.is_initialized():
        dist.all_reduce(loss)
    device = training.accelerator.device
    metrics = loss_metrics(float(loss), result.terms.reduced())
    metrics |= {
        "epoch": float(training.plan.locate(planned.number)[0]),
        "learning_rate": planned.learning_rate,
        "grad_norm": result.grad_norm,
        "refused_steps": float(progress.refused_steps),
        "pairs": float(progress.pairs),
        "memory_gb": psutil.Process().memory_info().rss / 1e9,
    }
    if device.type == "cuda":
        metrics["device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    metrics |= meter.throughput.metrics(training.accelerator.num_processes, peak_flops(device))
    if result.refused:  # its vectors may not be finite
        return metrics
    watched = collapse_watch(result.pairs, training.run.recipe.objective)
    return metrics | {f"collapse/{name}": value for name, value in watched.items()}


def _refuse_divergence(progress: Progress, result: StepResult) -> None:
    if not result.refused:
        return
    tasks = ", ".join(f"{task.value} {loss:.4g}" for task, loss in _task_losses(result.terms).items())
    logger.warning("step %d refused: gradient norm %s (losses: %s)", progress.step, result.grad_norm, tasks)
    if progress.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
        raise Diverged(
            f"{MAX_REFUSED_IN_A_ROW} steps in a row had a gradient that is not finite, the last is step "
            f"{progress.step} (losses: {tasks}): lower the learning rate, or look at their data; "
            "the checkpoints before them are whole"
        )


def _finish(training: Training, progress: Progress, mlflow_run_id: str) -> TrainingResult:
    """Export the model and write the result."""
    run = training.run
    export_model(training.accelerator, training.model, run)
    last = read_metrics(run.output / METRICS_FILE)[-1:] if training.is_main else []
    result = TrainingResult(
        steps=progress.step,
        pairs=progress.pairs,
        seconds=progress.seconds,
        pairs_per_second=progress.pairs / max(progress.seconds, 1e-9),
        metrics={key: value for line in last for key, value in line.items() if isinstance(value, float)},
        refused_steps=progress.refused_steps,
        exported_step=progress.step,
        mlflow_run_id=mlflow_run_id,
        trajectory=trajectory(run),
    )
    if training.is_main:
        result.write(run.output)
        logger.info("trained %d steps; model: %s", progress.step, run.output / MODEL_FOLDER)
    training.accelerator.wait_for_everyone()
    return result
