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
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from vipolyqwen_core.config import ObjectiveSettings, Term, TrainingRun
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.collapse_watch import collapse_watch
from vipolyqwen_core.objectives.routing import OPTIONS, TermSums
from vipolyqwen_core.objectives.task_balance import TaskBalance
from vipolyqwen_core.training.checkpoints import CheckpointError, Progress
from vipolyqwen_core.training.distribution import meet
from vipolyqwen_core.training.engine import PlannedStep, StepResult
from vipolyqwen_core.training.export_model import export_model
from vipolyqwen_core.training.flops import peak_flops
from vipolyqwen_core.training.identity import refuse_other_trajectory, trajectory
from vipolyqwen_core.training.loader_workers import told_of_workers_later
from vipolyqwen_core.training.loading import ChunkLoader, LoadedChunk, load_chunks
from vipolyqwen_core.training.meter import Meter
from vipolyqwen_core.training.quick_evaluation import QuickEvaluation
from vipolyqwen_core.training.ranks import is_first, largest, of_first, on_any, sums, together
from vipolyqwen_core.training.result import METRICS_FILE, MODEL_FOLDER, TrainingResult, read_result
from vipolyqwen_core.training.run_file import write_run
from vipolyqwen_core.training.schedule import chunk_requests, planned_steps, step_digest
from vipolyqwen_core.training.setup import Training, prepare, resume
from vipolyqwen_core.training.stopping import StoppedEarly, StopSignal
from vipolyqwen_core.training.tracking import Tracking, loss_metrics, read_metrics, tracking

logger = logging.getLogger(__name__)

MAX_REFUSED_IN_A_ROW = 10


class Diverged(ArithmeticError):
    """The gradient was not finite for many steps in a row."""


def train(run: TrainingRun, stop: StopSignal) -> TrainingResult:
    """Train, or resume, or find that the run is finished already.

    Raises:
        ValueError: the settings, the data or what lies in the output folder do not fit
        StoppedEarly: SIGTERM or SIGINT came; the run is saved
        CheckpointError: a checkpoint could not be written or read
        OSError: the model or the result could not be written; the same command tries again
        Diverged: the gradient stopped being finite
    """
    finished = _finished(run, stop)
    if finished is not None:
        logger.info("this run is finished: %s", run.output / MODEL_FOLDER)
        return finished
    disable_progress_bar()  # of transformers, for each file it reads
    training = prepare(run)
    progress = resume(training)
    if is_first():
        write_run(run)
    with tracking(run, training.plan.num_steps, progress.step) as tracker:
        progress = Loop(training, tracker, stop).run(progress)
        return _finish(training, progress, tracker.mlflow_run_id)


def _finished(run: TrainingRun, stop: StopSignal) -> TrainingResult | None:
    """The result of a run that is finished already; None where there is still something to do.

    Rank 0 looks, and when all are there: it may have waited for a training that has ended meanwhile, and
    ranks that looked for themselves, before that, would wait for it for ever.

    Raises:
        ValueError: the result is that of other data or settings
        StoppedEarly: it was told to stop before the others were there
    """
    with stop.obeyed_at_once():
        meet()
    result = None
    with together(ValueError):
        if is_first() and (result := read_result(run.output)) is not None:
            refuse_other_trajectory(run.output, result.trajectory, trajectory(run))
    return of_first(result)


class Loop:
    """The steps from where a run stands to its end."""

    def __init__(self, training: Training, tracker: Tracking, stop: StopSignal) -> None:
        self.training = training
        self.tracker = tracker
        self.stop = stop
        self.settings = training.run.recipe.training
        self.meter = Meter(training.counter)
        version, _ = training.versions
        self.judge = (
            QuickEvaluation(training.run, training.engine, version) if self.settings.eval_steps else None
        )
        self.saved_step = 0
        """The last step that was saved."""

    def run(self, progress: Progress) -> Progress:
        """All steps that are left.

        Raises:
            StoppedEarly, CheckpointError, Diverged: as `train`
        """
        training = self.training
        num_ranks = training.accelerator.num_processes
        self.saved_step = progress.step
        self._leave_before(progress)
        with closing(chunk_stream(training, progress.step)) as chunks:
            stream = self.meter.watch(chunks)
            for planned in planned_steps(training.plan, training.run.recipe, progress.step, num_ranks):
                result, progress = self._step(planned, stream, progress)
                judged, progress = self._judge(result, progress)
                self._report(planned, result, progress, judged)
                refuse_divergence(progress, result, training.run.recipe.objective)
                self._save(result, progress)
        return progress

    def _leave_before(self, progress: Progress) -> None:
        """Leave where a signal came while the run was set up: a step, and its checkpoint, take minutes."""
        if not self._is_last(progress) and on_any(self.stop.asked(), self.training.accelerator.device):
            raise StoppedEarly(
                f"stopped before step {progress.step + 1} of {self.training.plan.num_steps}; "
                "nothing had to be saved"
            )

    def _step(
        self, planned: PlannedStep, stream: Iterator[LoadedChunk], progress: Progress
    ) -> tuple[StepResult, Progress]:
        started = time.perf_counter()
        self.meter.begin(planned)
        balance = TaskBalance({Task(task): loss for task, loss in progress.running_losses.items()})
        result = self.training.engine.step(planned, stream, balance.weights())
        if self.training.run.recipe.objective.dynamic_task_weights and not result.refused:
            balance = balance.updated(
                _task_losses(result.terms.reduced(), self.training.run.recipe.objective)
            )
        return result, replace(
            progress,
            step=planned.number + 1,
            pairs=progress.pairs + planned.num_pairs,
            seconds=progress.seconds + time.perf_counter() - started,
            refused_steps=progress.refused_steps + result.refused,
            refused_in_a_row=progress.refused_in_a_row + 1 if result.refused else 0,
            running_losses={task.value: loss for task, loss in balance.running.items()},
        )

    def _is_due(self, progress: Progress, steps: int | None) -> bool:
        """Whether something that happens each so many steps, and at the end, happens now."""
        return steps is not None and (progress.step % steps == 0 or self._is_last(progress))

    def _is_last(self, progress: Progress) -> bool:
        return progress.step == self.training.plan.num_steps

    def _judge(self, result: StepResult, progress: Progress) -> tuple[dict[str, float], Progress]:
        """The quick evaluation, where it is due, and whether this is the best step so far.

        A refused step has left the weights as they were: it is no better than the one before, and not saved.
        """
        if self.judge is None or result.refused or not self._is_due(progress, self.settings.eval_steps):
            return {}, progress
        judged = self.judge.metrics()
        loss = judged["eval/loss"]
        if loss < (float("inf") if progress.best_loss is None else progress.best_loss):  # never NaN
            progress = replace(progress, best_loss=loss, best_step=progress.step)
        return judged, progress

    def _report(
        self, planned: PlannedStep, result: StepResult, progress: Progress, judged: dict[str, float]
    ) -> None:
        if judged or self._is_due(progress, self.settings.log_steps):
            metrics = _metrics(self.training, planned, result, progress, self.meter) | judged
            self.tracker.metrics(progress.step, metrics, step_digest(self.training.plan, planned.number))
            self.meter.restart()
        self.tracker.step_done(progress.step)

    def _save(self, result: StepResult, progress: Progress) -> None:
        """Save where it is due, and leave where a signal came."""
        training = self.training
        stopped = on_any(self.stop.asked(), training.accelerator.device)
        is_best = progress.best_step == progress.step
        every = self.settings.save_steps
        is_due = is_best or progress.step // every > self.saved_step // every
        # A model that has gone wrong must not displace a good one, unless there will be no other occasion.
        # The next good step is saved.
        if self._is_last(progress) or stopped or (is_due and not result.refused):
            with told_of_workers_later():
                training.checkpoints.save(progress, training.model, training.optimizer)
            self.saved_step = progress.step
        if stopped and not self._is_last(progress):
            saved = training.checkpoints.complete()
            raise StoppedEarly(
                f"stopped after step {progress.step} of {training.plan.num_steps}; "
                f"saved: {saved[0] if saved else None}"
            )


def chunk_stream(training: Training, first_step: int) -> Generator[LoadedChunk]:
    """This rank's chunks, in order, from a step on; close it."""
    run, accelerator = training.run, training.accelerator
    recipe = run.recipe
    loader = ChunkLoader(
        run.training_set,
        str(run.backbone),
        recipe.processing,
        recipe.batches.prefix_dropout,
        recipe.training.seed,
        mined=run.hard_negatives,
        versions=training.versions,
    )
    requests = chunk_requests(
        training.plan, recipe, first_step, accelerator.process_index, accelerator.num_processes
    )
    return load_chunks(loader, requests, recipe.training.loader_workers, accelerator.device.type == "cuda")


def _task_losses(terms: TermSums, objective: ObjectiveSettings) -> dict[Task, float]:
    """The sum of a task's terms with their weights, of the tasks that the step had.

    Without the options: uniformity falls below zero, and a task is weighed by the inverse of this; the
    entropy of the pooling says nothing of how hard a task is. Without terms of weight 0: nothing learns from
    them, and a task that has no others needs no weight.
    """
    losses: dict[Task, float] = {}
    for (task, name), mean in terms.means().items():
        term = name.partition("@")[0]
        weight = 0.0 if term in OPTIONS else objective.term_weights.get(Term(term), 1.0)
        if weight:
            losses[task] = losses.get(task, 0.0) + weight * mean
    return losses


def _metrics(
    training: Training, planned: PlannedStep, result: StepResult, progress: Progress, meter: Meter
) -> dict[str, float]:
    """Metrics of this step, with the rates since the last line. All ranks take part, rank 0 writes them."""
    device = training.accelerator.device
    (loss,) = sums([float(result.loss)], device)
    metrics = loss_metrics(loss, result.terms.reduced())
    metrics |= {
        "epoch": float(training.plan.locate(planned.number)[0]),
        "learning_rate": planned.learning_rate,
        "grad_norm": result.grad_norm,
        "refused_steps": float(progress.refused_steps),
        "pairs": float(progress.pairs),
    }
    metrics |= _memory(device)
    done = meter.throughput.of_all_ranks(device)
    metrics |= done.metrics(training.accelerator.num_processes, peak_flops(device))
    if result.refused:  # its vectors may not be finite
        return metrics
    watched = collapse_watch(result.pairs, training.run.recipe.objective)
    return metrics | {f"collapse/{name}": value for name, value in watched.items()}


def _memory(device: torch.device) -> dict[str, float]:
    """GB that the rank with the most of them holds. Peak of the device; processes of the loader are apart."""
    held = {"memory_gb": psutil.Process().memory_info().rss / 1e9}
    if device.type == "cuda":
        held["device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return dict(zip(held, largest(list(held.values()), device), strict=True))


def refuse_divergence(progress: Progress, result: StepResult, objective: ObjectiveSettings) -> None:
    """Tell of a refused step, and end the run at the last of many. All ranks take part, rank 0 tells."""
    if not result.refused:
        return
    of_tasks = _task_losses(result.terms.reduced(), objective)
    tasks = ", ".join(f"{task.value} {loss:.4g}" for task, loss in of_tasks.items())
    if is_first():
        logger.warning(
            "step %d refused: gradient norm %s (losses: %s)", progress.step, result.grad_norm, tasks
        )
    if progress.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
        raise Diverged(
            f"{MAX_REFUSED_IN_A_ROW} steps in a row had a gradient that is not finite, the last is step "
            f"{progress.step} (losses: {tasks}): lower the learning rate, or look at their data; "
            "the checkpoints before them are whole"
        )


def _choose_weights(training: Training, progress: Progress) -> int:
    """Load the best step where quick evaluations chose one; the step whose weights the model has now.

    A run that was resumed without quick evaluations takes the last step: they stopped looking.

    Raises:
        CheckpointError: the best checkpoint is damaged; names what helps
    """
    is_judged = training.run.recipe.training.eval_steps is not None
    if not is_judged or progress.best_step is None or progress.best_step == progress.step:
        return progress.step
    best = training.checkpoints.path(progress.best_step)
    if not training.checkpoints.has(progress.best_step):
        if is_first():
            logger.warning("the best checkpoint, %s, is gone: step %d is exported", best, progress.step)
        return progress.step
    damage = training.checkpoints.damage(best)
    if damage is not None:
        raise CheckpointError(
            f"the best checkpoint, {best}, is damaged: {damage}. Put a whole copy there, or remove the "
            f"folder to export the last step, {progress.step}; then run the same command again"
        )
    training.checkpoints.load(best, training.model, None)
    return progress.best_step


def _finish(training: Training, progress: Progress, mlflow_run_id: str) -> TrainingResult:
    """Export the model, the best where quick evaluations chose one, and write the result."""
    run = training.run
    exported_step = _choose_weights(training, progress)
    export_model(training.accelerator, training.model, run, training.facts)
    last = read_metrics(run.output / METRICS_FILE)[-1:] if is_first() else []
    result = TrainingResult(
        steps=progress.step,
        pairs=progress.pairs,
        seconds=progress.seconds,
        pairs_per_second=progress.pairs / max(progress.seconds, 1e-9),
        metrics={key: value for line in last for key, value in line.items() if isinstance(value, float)},
        refused_steps=progress.refused_steps,
        exported_step=exported_step,
        mlflow_run_id=mlflow_run_id,
        trajectory=training.checkpoints.trajectory,
    )
    with together(OSError):
        if is_first():
            result.write(run.output)
            logger.info("trained %d steps; model: %s", progress.step, run.output / MODEL_FOLDER)
    return result
