"""From task to losses: one table, and the step's loss as a sum over pairs.

All pairs go through all losses that any task needs, and a mask by task decides what counts: no rank waits for
another's tasks, nothing is moved to the host, and shapes do not depend on the make-up of a batch. Next to the
backbone the extra arithmetic is nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from vipolyqwen_core.config import ObjectiveSettings, Term
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives import losses
from vipolyqwen_core.objectives.negatives import excluded
from vipolyqwen_core.objectives.pairs import TASKS, PairKeys, PairVectors

TERMS: Final[dict[Task, tuple[Term, ...]]] = {
    Task.TEXT_PAIR: (Term.INFO_NCE, Term.SCORE_MSE),
    Task.INSTR: (Term.INFO_NCE, Term.COSINE),
    Task.OCR: (Term.INFO_NCE, Term.TRIPLET_MARGIN),
    Task.VQA_SINGLE: (Term.INFO_NCE, Term.TRIPLET_MARGIN),
    Task.VQA_MULTI: (Term.INFO_NCE, Term.TRIPLET_MARGIN),
}
"""The losses of each task."""

UNIFORMITY: Final = "uniformity"
"""An option of every task; its weight is `ObjectiveSettings.uniformity_weight`."""
POOLING_ENTROPY: Final = "pooling_entropy"
"""Another: how far the pooling of a pair is from even; its weight is `pooling_entropy_weight`. It is of no
slice of the vector, and compares no pair with another."""
OPTIONS: Final = (UNIFORMITY, POOLING_ENTROPY)


def slices_of_terms(names: Sequence[str]) -> dict[str, int]:
    """For each name of a term, on how many slices the term is computed, the whole vector included."""
    slices = Counter(name.partition("@")[0] for name in names)
    return {name: slices[name.partition("@")[0]] for name in names}


@dataclass(frozen=True)
class TermSums:
    """Every term by task, as sums, so that those of chunks and ranks add up."""

    names: tuple[str, ...]
    """Names of the terms; `info_nce@256` is the term on a Matryoshka slice."""
    sums: Tensor
    """[tasks, terms] sum over the pairs that the term applies to, unweighted; detached."""
    counts: Tensor
    """[tasks, terms] number of these: for `info_nce` the positives, for `score_mse` the scored pairs."""

    def __add__(self, other: "TermSums") -> "TermSums":
        assert self.names == other.names, (self.names, other.names)
        return TermSums(self.names, self.sums + other.sums, self.counts + other.counts)

    def reduced(self) -> "TermSums":
        """The sums over all ranks: one collective, whatever the tasks."""
        if not dist.is_initialized():
            return self
        both = torch.stack([self.sums, self.counts])
        dist.all_reduce(both)
        return TermSums(self.names, both[0], both[1])

    def means(self) -> dict[tuple[Task, str], float]:
        """Mean of each term by task, unweighted; pairs of task and term without a pair are left out."""
        sums, counts = torch.stack([self.sums, self.counts]).tolist()
        return {
            (task, name): sums[row][column] / counts[row][column]
            for row, task in enumerate(TASKS)
            for column, name in enumerate(self.names)
            if counts[row][column]
        }


@dataclass(frozen=True)
class Losses:
    """The loss of some anchors, and where it comes from."""

    total: Tensor
    """[] weighted sum over the anchors' terms, divided by the pairs of the step. It carries gradients to all
    vectors of anchors and candidates (zeros, where no pair contributes): backward skips no collective."""
    terms: TermSums
    """Every term by task."""

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.total + other.total, self.terms + other.terms)


def compute_losses(
    anchors: PairVectors,
    candidates: PairVectors,
    settings: ObjectiveSettings,
    *,
    num_step_pairs: int,
    matryoshka_dims: Sequence[int] = (),
    task_weights: Mapping[Task, float] | None = None,
) -> Losses:
    """The losses of the anchors against the candidates, which contain the anchors.

    `candidates = gather(anchors)` compares with all ranks. Because each pair counts 1 / num_step_pairs, the
    totals of chunks and ranks add up to the loss of the step: a data-parallel engine that averages gradients
    over ranks multiplies by their number. With Matryoshka slices a pair's loss is the mean over the slices
    and the whole vector.

    Shapes:
        anchors: B pairs; candidates: C pairs and M hard negatives
    Args:
        num_step_pairs: pairs of the optimizer step over all ranks and chunks
        task_weights: factors of a moment (`TaskBalance.weights()`), on top of those of the settings
    """
    with torch.autocast(anchors.query.device.type, enabled=False):
        values, names = _values(anchors, candidates, settings, matryoshka_dims)
        applies = _applies(anchors.keys, settings, names)
        weights = _weights(settings, names, task_weights)
        # small tables cross without waiting for what the device has still to do
        weights = weights.to(values.device, values.dtype, non_blocking=True)
        weights_of_pair = weights[anchors.keys.task] * applies
        # every term of every pair is in the sum, so every rank's backward reaches every collective
        total = (values * weights_of_pair).sum() / num_step_pairs
        sums = values.new_zeros(len(TASKS), len(names))
        counts = torch.zeros_like(sums)
        sums.index_add_(0, anchors.keys.task, (values * applies).detach())
        counts.index_add_(0, anchors.keys.task, applies.to(counts))
    return Losses(total, TermSums(names, sums, counts))


def _values(
    anchors: PairVectors,
    candidates: PairVectors,
    settings: ObjectiveSettings,
    matryoshka_dims: Sequence[int],
) -> tuple[Tensor, tuple[str, ...]]:
    """Every term of every pair, whatever its task: [B, terms], with the names of the terms."""
    target_excluded, query_excluded = excluded(
        anchors.keys, candidates.keys, cross_task=settings.cross_task_negatives
    )
    columns: dict[str, Tensor] = {}
    for dim in (None, *sorted(set(matryoshka_dims), reverse=True)):
        query, target, queries, targets, negatives = (
            vectors if dim is None else losses.matryoshka(vectors, dim)
            for vectors in (
                anchors.query,
                anchors.target,
                candidates.query,
                candidates.target,
                candidates.negatives,
            )
        )
        wrong = torch.cat([targets, negatives])
        suffix = "" if dim is None else f"@{dim}"
        columns[f"{Term.INFO_NCE}{suffix}"] = losses.info_nce(
            query,
            target,
            wrong,
            queries,
            target_excluded=target_excluded,
            query_excluded=query_excluded,
            temperature=settings.temperature,
        )
        columns[f"{Term.SCORE_MSE}{suffix}"] = losses.score_mse(query, target, anchors.keys.score)
        columns[f"{Term.COSINE}{suffix}"] = losses.cosine(query, target)
        columns[f"{Term.TRIPLET_MARGIN}{suffix}"] = losses.triplet_margin(
            query, target, wrong, target_excluded=target_excluded, margin=settings.margin
        )
        if settings.uniformity_weight:
            columns[f"{UNIFORMITY}{suffix}"] = (
                losses.uniformity(query, queries, excluded=query_excluded)
                + losses.uniformity(target, targets, excluded=target_excluded[:, : len(targets)])
            ) / 2
    if settings.pooling_entropy_weight:
        assert anchors.concentration is not None, "the model was not asked how even its pooling is"
        columns[POOLING_ENTROPY] = anchors.concentration
    return torch.stack(list(columns.values()), dim=1), tuple(columns)


def positives(keys: PairKeys, settings: ObjectiveSettings) -> Tensor:
    """[B] bool: the target is a right answer, which a scored pair is only from `positive_score` on."""
    # compared as float32, as in `is_positive`
    threshold = torch.tensor(settings.positive_score, dtype=torch.float32)
    return keys.score.isnan() | (keys.score.float() >= threshold)


def _applies(keys: PairKeys, settings: ObjectiveSettings, names: Sequence[str]) -> Tensor:
    """[B, terms] bool: the task has the term, and the pair can take part in it."""
    bare = [name.partition("@")[0] for name in names]
    of_task = torch.tensor([[name in (*TERMS[task], *OPTIONS) for name in bare] for task in TASKS])
    positive, scored = positives(keys, settings), ~keys.score.isnan()
    everyone = torch.ones_like(positive)
    able = {Term.SCORE_MSE: scored, **dict.fromkeys(OPTIONS, everyone)}
    return of_task.to(keys.task.device, non_blocking=True)[keys.task] & torch.stack(
        [able.get(name, positive) for name in bare], dim=1
    )


def _weights(
    settings: ObjectiveSettings,
    names: Sequence[str],
    task_weights: Mapping[Task, float] | None,
) -> Tensor:
    """[tasks, terms]: weight of the term times weight of the task, over the number of its slices."""
    of_term = {term.value: settings.term_weights.get(term, 1.0) for term in Term}
    of_term[UNIFORMITY] = settings.uniformity_weight
    of_term[POOLING_ENTROPY] = settings.pooling_entropy_weight
    slices = slices_of_terms(names)
    moment = task_weights or {}
    return torch.tensor(
        [
            [
                settings.task_weights.get(task, 1.0)
                * moment.get(task, 1.0)
                * of_term[name.partition("@")[0]]
                / slices[name]
                for name in names
            ]
            for task in TASKS
        ],
        dtype=torch.float64,
    )
