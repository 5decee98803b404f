"""From the plan to what each rank asks of its loader, and to what the engine knows of each step."""

import hashlib
from collections.abc import Iterator

import numpy as np

from vipolyqwen_core.config import Negatives, Recipe
from vipolyqwen_core.training.engine import PlannedStep
from vipolyqwen_core.training.loading import ChunkRequest
from vipolyqwen_core.training.optimizer import learning_rate
from vipolyqwen_core.training.plan import Chunk, TrainingPlan, plan_chunks

HELD_BYTES = 8 * 2**20
"""Inputs of a step with `negatives: step` that a rank keeps on the host for the second pass. The loader makes
those beyond it again, so that memory does not grow with the pairs of a step. To decode a picture twice is
little beside the model's three passes over it."""
BYTES_OF_TOKEN = 64
BYTES_OF_PATCH = 588 + 16
"""Of Qwen2-VL's; those of Qwen3-VL have 784, so that some 2 MB more are held."""


def planned_steps(
    plan: TrainingPlan, recipe: Recipe, first_step: int, num_ranks: int
) -> Iterator[PlannedStep]:
    """What every rank knows of each step from `first_step` on."""
    for step, _, rows in plan.steps(first_step):
        chunks = plan_chunks(plan.index, rows, recipe.batches, num_ranks)
        yield PlannedStep(
            number=step,
            num_pairs=len(rows),
            num_chunks=len(chunks),
            has_pictures=any(chunk.has_pictures for chunk in chunks),
            learning_rate=learning_rate(step, plan.num_steps, recipe.optimizer),
            num_held=_num_held(plan, recipe, chunks),
        )


def chunk_requests(
    plan: TrainingPlan, recipe: Recipe, first_step: int, rank: int, num_ranks: int
) -> Iterator[ChunkRequest]:
    """The chunks of a rank, in the order in which its engine takes them.

    With several ranks the last chunk of a step always runs the vision tower: gradients are exchanged there,
    and data parallel waits for each parameter to have taken part. So does the first chunk of all: before
    FSDP2 has once gathered the weights of a layer, a backward pass that leaves the layer out fails.
    """
    for step, epoch, rows in plan.steps(first_step):
        chunks = plan_chunks(plan.index, rows, recipe.batches, num_ranks)
        sure = {(first_step, 0), (step, len(chunks) - 1)} if num_ranks > 1 else set()
        requests = [
            ChunkRequest(
                step,
                epoch,
                chunk.rows[rank],
                chunk.has_pictures or (step, number) in sure,
                chunk.rows if num_ranks > 1 else (),
            )
            for number, chunk in enumerate(chunks)
        ]
        yield from requests
        yield from requests[_num_held(plan, recipe, chunks) :]


def step_digest(plan: TrainingPlan, step: int) -> str:
    """16 hex digits: which samples form a step. Equal digests, equal samples."""
    keys = plan.index.keys[plan.rows(step)]
    return hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()


def _num_held(plan: TrainingPlan, recipe: Recipe, chunks: list[Chunk]) -> int:
    """How many chunks of a step, from the first on, are held for a second pass; the same on all ranks.

    A step without a second pass holds all of its chunks: none is loaded again.
    """
    if recipe.batches.negatives is not Negatives.STEP or len(chunks) == 1:
        return len(chunks)
    index = plan.index
    sizes = [
        max(
            int(index.tokens[rows].sum()) * BYTES_OF_TOKEN + int(index.patches[rows].sum()) * BYTES_OF_PATCH
            for rows in chunk.rows
        )
        for chunk in chunks
    ]
    return int(np.searchsorted(np.cumsum(sizes), HELD_BYTES, side="right"))
