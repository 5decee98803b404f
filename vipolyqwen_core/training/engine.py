"""The optimizer step: chunks in, gradients accumulated, one reduction over ranks, one update.

With `negatives: chunk` each chunk is compared with itself over all ranks and goes backward at once. With
`negatives: step` all chunks are embedded first, without gradients; the loss of the whole step gives the
gradient of each vector, and each chunk is embedded again to carry its part back (GradCache, Gao et al. 2021,
arXiv 2101.06983). Either way a rank holds the activations of one chunk.
"""

import contextlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vipolyqwen_core.config import Negatives, ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.cached_gradients import cached_gradients
from vipolyqwen_core.objectives.negatives import gather
from vipolyqwen_core.objectives.pairs import PairVectors, join_pairs, part_pairs, split_vectors
from vipolyqwen_core.objectives.routing import Losses, TermSums, compute_losses
from vipolyqwen_core.training.loading import LoadedChunk
from vipolyqwen_core.training.optimizer import set_learning_rate
from vipolyqwen_core.training.plan import mixed_seed


@dataclass(frozen=True)
class PlannedStep:
    """What every rank knows of a step before it loads anything."""

    number: int
    """From 0."""
    num_pairs: int
    """Pairs over all ranks."""
    num_chunks: int
    """Chunks, on every rank."""
    has_pictures: bool
    """Whether any rank has a picture: else the vision tower learns nothing."""
    learning_rate: float
    """Rate of this step."""
    num_held: int
    """Chunks, the first of the step, that are held on the host where there is a second pass; the others come
    once more from the loader."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, as seen by this rank."""

    loss: Tensor
    """[] this rank's part; the sum over ranks is the loss of the step. Detached."""
    terms: TermSums
    """This rank's terms by task."""
    grad_norm: float
    """Norm of the whole gradient before clipping; the same on all ranks."""
    refused: bool
    """True where the gradient was not finite: nothing was changed."""
    pairs: PairVectors
    """This rank's vectors of the step, detached, for the collapse watch."""


class Engine:
    """Model and optimizer, prepared by accelerate, and how a step runs through them."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        vision_parameters: list[nn.Parameter],
        objective: ObjectiveSettings,
        negatives: Negatives,
        matryoshka_dims: tuple[int, ...] = (),
        max_grad_norm: float = 1.0,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """`vision_parameters` are those of the prepared model; `autocast` is None where the wrapped model
        casts by itself, or where everything is float32."""
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.vision_parameters = vision_parameters
        self.objective = objective
        self.negatives = negatives
        self.matryoshka_dims = matryoshka_dims
        self.max_grad_norm = max_grad_norm
        self.autocast = autocast
        self.seed = seed

    def settle_buckets(self, chunk: LoadedChunk) -> None:
        """Let data parallel put gradients into the buckets that it keeps, before the first step.

        It fills them anew after the first exchange, in the order in which gradients came, and the place in a
        bucket decides in which order the ranks' parts are added up. A run that is resumed must round like one
        that never stopped. `chunk`: any with a picture, the same whenever the run starts. Nothing is learned.
        """
        self.model.train()
        self._backward(self._embed(chunk, 0, 0).stacked().sum())
        self.optimizer.zero_grad(set_to_none=True)

    def step(
        self,
        planned: PlannedStep,
        chunks: Iterator[LoadedChunk],
        task_weights: Mapping[Task, float] | None = None,
    ) -> StepResult:
        """One update from the next chunks of the stream, unless the gradient is not finite."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        set_learning_rate(self.optimizer, planned.learning_rate)
        run = (
            self._against_chunk
            if self.negatives is Negatives.CHUNK or planned.num_chunks == 1
            else self._against_step
        )
        losses, pairs = run(planned, chunks, task_weights)
        if not planned.has_pictures:
            for parameter in self.vision_parameters:
                parameter.grad = None  # zeros of a dummy picture: they must not decay weights and moments
        grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        refused = not (grad_norm < float("inf"))
        if not refused:
            self.optimizer.step()
        return StepResult(losses.total, losses.terms, grad_norm, refused, pairs)

    def _against_chunk(
        self,
        planned: PlannedStep,
        chunks: Iterator[LoadedChunk],
        task_weights: Mapping[Task, float] | None,
    ) -> tuple[Losses, PairVectors]:
        parts: list[Losses] = []
        seen: list[PairVectors] = []
        for number in range(planned.num_chunks):
            chunk = next(chunks)
            with self._synchronised(number == planned.num_chunks - 1):
                pairs = self._embed(chunk, planned.number, number)
                losses = compute_losses(
                    pairs,
                    gather(pairs, sizes=chunk.sizes),
                    self.objective,
                    num_step_pairs=planned.num_pairs,
                    matryoshka_dims=self.matryoshka_dims,
                    task_weights=task_weights,
                )
                self._backward(losses.total)
            parts.append(Losses(losses.total.detach(), losses.terms))
            seen.append(pairs.map(Tensor.detach))
        return reduce(operator.add, parts), join_pairs(seen)

    def _against_step(
        self,
        planned: PlannedStep,
        chunks: Iterator[LoadedChunk],
        task_weights: Mapping[Task, float] | None,
    ) -> tuple[Losses, PairVectors]:
        held: list[LoadedChunk] = []
        embedded: list[PairVectors] = []
        for number in range(planned.num_chunks):
            chunk = next(chunks)
            with torch.no_grad():
                embedded.append(self._embed(chunk, planned.number, number))
            if number < planned.num_held:
                held.append(chunk)
        pairs = join_pairs(embedded)
        keys = [part.keys for part in embedded]
        embedded.clear()  # joined by now: while the chunks go backward, one copy is enough
        losses, gradients = cached_gradients(
            pairs,
            self.objective,
            num_step_pairs=planned.num_pairs,
            matryoshka_dims=self.matryoshka_dims,
            task_weights=task_weights,
        )
        for number, gradient in enumerate(part_pairs(gradients, keys)):
            chunk = held[number] if number < planned.num_held else next(chunks)
            with self._synchronised(number == planned.num_chunks - 1):
                self._backward(self._embed(chunk, planned.number, number).dot(gradient))
        return losses, pairs

    @torch.no_grad()
    def embed(self, chunk: LoadedChunk) -> PairVectors:
        """A chunk's pairs and hard negatives, as the model gives them in use."""
        self.model.eval()
        return self._forward(chunk)

    def _embed(self, chunk: LoadedChunk, step: int, number: int) -> PairVectors:
        """The chunk's pairs and hard negatives.

        Where a rank has no pairs in a chunk there are none, and its filler goes backward with gradients of
        zero: the ranks exchange weights and gradients together.
        """
        torch.manual_seed(mixed_seed(self.seed, step, number, self.accelerator.process_index) >> 1)
        return self._forward(chunk)

    def _forward(self, chunk: LoadedChunk) -> PairVectors:
        packed = chunk.packed.to(self.accelerator.device)
        device = self.accelerator.device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            if self.objective.pooling_entropy_weight:
                vectors, concentration = self.model(packed, with_concentration=True)
            else:
                vectors, concentration = self.model(packed), None
        keys = chunk.keys.to(self.accelerator.device, non_blocking=True)
        num_items = 2 * keys.num_pairs + keys.num_negatives  # a filler is none of them
        return split_vectors(vectors[:num_items], keys, concentration)

    def _backward(self, loss: Tensor) -> None:
        """Gradients are averaged over ranks; the losses of the ranks add up."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _synchronised(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients in the last chunk of a step only."""
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model)
