"""Everything that a run builds once: data, model, optimizer, checked and wrapped."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.model.compilation import compile_layers
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.serving.model_card import ModelFacts
from vipolyqwen_core.training.agreement import refuse_disagreement
from vipolyqwen_core.training.checkpoints import Checkpoints, Progress, initialise_optimizer
from vipolyqwen_core.training.distribution import autocast_type, check_wrapped, shard_ends, start_accelerator
from vipolyqwen_core.training.engine import Engine
from vipolyqwen_core.training.flops import FlopCounter
from vipolyqwen_core.training.identity import refuse_other_data, trajectory
from vipolyqwen_core.training.loading import (
    ChunkLoader,
    ChunkRequest,
    LoadedChunk,
    read_versions,
    refuse_other_lengths,
)
from vipolyqwen_core.training.optimizer import build_optimizer
from vipolyqwen_core.training.plan import PlanIndex, TrainingPlan, plan_training, read_plan_index
from vipolyqwen_core.training.ranks import is_first, together
from vipolyqwen_core.training.result import CHECKPOINTS_FOLDER
from vipolyqwen_core.training.rows import TrainingPictures

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """One run in one process: everything that is built once."""

    run: TrainingRun
    accelerator: Accelerator
    plan: TrainingPlan
    versions: tuple[str | None, str | None]
    """Of the training set and of the mined hard negatives, from before the plan was made."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: Engine
    counter: FlopCounter
    checkpoints: Checkpoints
    facts: ModelFacts
    """For the model's card: the next training set may lie there when the model is exported."""


def prepare(run: TrainingRun) -> Training:
    """Data, model and optimizer, checked and wrapped.

    Raises:
        ValueError: the training set is missing or wrong, the ranks differ in settings, data or folder, or
            the processes are not those of the settings
    """
    recipe, settings = run.recipe, run.recipe.training
    accelerator = start_accelerator(settings)
    with together(ValueError):  # a machine may lack what the others have
        versions = read_versions(run.training_set, run.hard_negatives)
        refuse_other_data(run)
        index = read_plan_index(run.training_set / "index.parquet", run.hard_negatives)
        plan = plan_training(
            index, recipe.batches, run.source_weights, settings.seed, settings.epochs, settings.max_steps
        )
        facts = ModelFacts.of(run)
        TrainingPictures(run.training_set).check()
        if is_first():
            refuse_other_lengths(run, index)
    refuse_disagreement(run, index)
    if is_first():
        _warn_of_unused_weights(run, index)
    bare = ViPolyQwenModel.from_backbone(run.backbone, recipe.model, recipe.processing, settings.seed)
    if settings.activation_checkpointing:
        bare.activation_checkpointing_enable()
    if settings.compile_layers:
        compile_layers(bare)
    counter = FlopCounter.of(bare)
    shard_ends(bare, settings)
    model, prepared = accelerator.prepare(bare, build_optimizer(bare, recipe.optimizer))
    check_wrapped(model, settings, accelerator.num_processes)
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
    if isinstance(model, DistributedDataParallel):
        engine.settle_buckets(_first_pair(run))
    checkpoints = Checkpoints(run.output / CHECKPOINTS_FOLDER, settings.keep_checkpoints, trajectory(run))
    return Training(run, accelerator, plan, versions, model, optimizer, engine, counter, checkpoints, facts)


def _first_pair(run: TrainingRun) -> LoadedChunk:
    """A chunk with the first row of the training set, and with a picture."""
    recipe = run.recipe
    loader = ChunkLoader(run.training_set, run.backbone, recipe.processing, 0.0, recipe.training.seed)
    return loader[ChunkRequest(step=0, epoch=0, rows=np.array([0]), needs_picture=True)]


def _warn_of_unused_weights(run: TrainingRun, index: PlanIndex) -> None:
    """A source may have lost all of its pairs on their way; or its name is misspelt in a `run.json`."""
    unused = {
        name: weight
        for name, weight in sorted(run.source_weights.items())
        if weight != 1.0 and name not in index.source_names
    }
    if unused:
        logger.warning(
            "source weights without effect: %s; the training set has pairs of %s only",
            unused,
            ", ".join(sorted(index.source_names)),
        )


def resume(training: Training) -> Progress:
    """The state of the newest whole checkpoint, or the beginning."""
    path = training.checkpoints.latest()
    if path is None:
        return Progress()
    progress = training.checkpoints.load(path, training.model, training.optimizer)
    logger.info("resumed from %s", path)
    return progress
