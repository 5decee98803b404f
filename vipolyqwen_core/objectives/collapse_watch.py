"""Signs of collapse: all vectors alike, or spread over a few directions only."""

import torch
from torch import Tensor

from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.objectives import losses
from vipolyqwen_core.objectives.negatives import excluded_targets
from vipolyqwen_core.objectives.pairs import PairVectors
from vipolyqwen_core.objectives.routing import positives

QUANTILES = (0.05, 0.5, 0.95)
MAX_PAIRS = 1024
"""More pairs say nothing new, and a singular value decomposition is cubic."""
MAX_COSINES = 2**20
"""Of negatives: with many hard ones a pair there are more than `torch.quantile` takes."""


@torch.no_grad()
def collapse_watch(pairs: PairVectors, settings: ObjectiveSettings) -> dict[str, float]:
    """Figures of the vectors of a step, by name; those that need what the pairs lack are left out.

    `alignment`: mean |q - t|² of positives, 0 is best. `uniformity`: log of the mean of exp(-2 |x - y|²) over
    all vectors, 0 is one point, about -4 a sphere. `effective_rank`: exponential of the entropy of the
    singular values, 1 is one direction. `deviation`: mean standard deviation of a component, times the root
    of the dimension: 1 on a sphere, 0 in a point. `positive_similarity@0.5` and so on: quantiles of
    the cosines of positives and of the negatives that the losses use, of a million of them at most; `gap`:
    difference of the means.

    Shapes:
        pairs: B pairs; the first 1,024 count
    Reference:
        Wang and Isola 2020, arXiv 2005.10242; Roy and Vetterli 2007, "The effective rank"
    """
    pairs = pairs.slice(0, min(pairs.num_pairs, MAX_PAIRS))
    query, target = losses.exact(pairs.query), losses.exact(pairs.target)
    figures: dict[str, Tensor] = {}
    if pairs.num_pairs > 1:
        vectors = torch.cat([query, target])
        kernel = torch.exp(4 * (vectors @ vectors.T) - 4)
        number = len(vectors)
        figures["uniformity"] = ((kernel.sum() - kernel.trace()) / (number * (number - 1))).log()
        shares = torch.linalg.svdvals(vectors)
        shares = shares / shares.sum()
        figures["effective_rank"] = torch.exp(torch.special.entr(shares).sum())
        figures["deviation"] = vectors.std(dim=0, correction=0).mean() * vectors.shape[1] ** 0.5
    right = losses.similarity(query, target)[positives(pairs.keys, settings)]
    excluded = excluded_targets(pairs.keys, pairs.keys, cross_task=settings.cross_task_negatives)
    wrong = (query @ torch.cat([target, losses.exact(pairs.negatives)]).T)[~excluded]
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
