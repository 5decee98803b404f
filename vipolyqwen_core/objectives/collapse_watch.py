"""Signs of collapse: all vectors alike, or spread over a few directions only."""

import torch
import torch.distributed as dist
from torch import Tensor

from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.objectives import losses
from vipolyqwen_core.objectives.negatives import excluded, gather
from vipolyqwen_core.objectives.pairs import PairVectors
from vipolyqwen_core.objectives.routing import positives

QUANTILES = (0.05, 0.5, 0.95)
MAX_PAIRS = 1024
"""Pairs that are looked at: more say nothing new, and finding singular values is cubic."""
MAX_COSINES = 2**20
"""Cosines of negatives that are looked at: with many hard ones there are more than `torch.quantile` takes."""


@torch.no_grad()
def collapse_watch(pairs: PairVectors, settings: ObjectiveSettings) -> dict[str, float]:
    """Figures of the vectors of a step, by name; those that need what the pairs lack are left out.

    All ranks call it together and get the same: chunks are ordered by task, so a part of a step that lies on
    one rank, or at its beginning, may be of one task alone.

    `alignment`: mean |q - t|² of positives, 0 is best. `uniformity`: log of the mean of exp(-2 |x - y|²) over
    all vectors, 0 is one point, about -4 a sphere. `effective_rank`: exponential of the entropy of the
    singular values, 1 is one direction. `deviation`: mean standard deviation of a component, times the root
    of the dimension: 1 on a sphere, 0 in a point. `positive_similarity@0.5` and so on: quantiles of
    the cosines of positives and of negatives, of a million of them at most; `gap`: difference of the means.
    Negatives are excluded as the losses do it, but those of other chunks count too.

    Shapes:
        pairs: this rank's B pairs of the step; 1,024 of all ranks count, at even distances
    Reference:
        Wang and Isola 2020, arXiv 2005.10242; Roy and Vetterli 2007, "The effective rank"
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    pairs = gather(pairs.thinned(-(-MAX_PAIRS // num_ranks)))
    query, target = losses.at_least_float32(pairs.query), losses.at_least_float32(pairs.target)
    figures: dict[str, Tensor] = {}
    if pairs.num_pairs > 1:
        vectors = torch.cat([query, target])
        kernel = torch.exp(4 * (vectors @ vectors.T) - 4)
        number = len(vectors)
        figures["uniformity"] = ((kernel.sum() - kernel.trace()) / (number * (number - 1))).log()
        figures["effective_rank"] = effective_rank(vectors)
        figures["deviation"] = vectors.std(dim=0, correction=0).mean() * vectors.shape[1] ** 0.5
    right = losses.similarity(query, target)[positives(pairs.keys, settings)]
    right_too = excluded(pairs.keys, pairs.keys, cross_task=settings.cross_task_negatives).targets
    wrong = (query @ torch.cat([target, losses.at_least_float32(pairs.negatives)]).T)[~right_too]
    wrong = wrong[:: -(-len(wrong) // MAX_COSINES) or 1]
    for name, cosines in (("positive_similarity", right), ("negative_similarity", wrong)):
        if len(cosines):
            points = torch.tensor(QUANTILES, dtype=cosines.dtype, device=cosines.device)
            for point, value in zip(QUANTILES, torch.quantile(cosines, points), strict=True):
                figures[f"{name}@{point:g}"] = value
    if len(right):
        figures["alignment"] = (2 - 2 * right).mean()
    if len(right) and len(wrong):
        figures["gap"] = right.mean() - wrong.mean()
    values = torch.stack([value.double() for value in figures.values()]).tolist() if figures else []
    return dict(zip(figures, values, strict=True))


def effective_rank(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values, each as a share of their sum.

    They are the roots of the eigenvalues of the smaller Gram matrix, which take less time than a singular
    value decomposition. In float64 they are more exact than one in float32: a point has rank 1.0000004.

    Shapes:
        vectors: [N, D]
        returns: [] float64
    """
    wide = vectors.double()
    gram = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()  # rounding puts some of the zeros below zero
    return torch.exp(torch.special.entr(values / values.sum()).sum())
