"""The losses: pure functions on vectors, one value a pair.

They know neither task nor rank: who is compared with whom arrives as candidates and masks. A value a pair,
instead of a mean, lets the sums of chunks and ranks add up to the step's loss exactly.

Arithmetic is float32 at least; float64 stays float64.
"""

import torch
from torch import Tensor

HALF_TYPES = (torch.float16, torch.bfloat16)


def at_least_float32(vectors: Tensor) -> Tensor:
    """Vectors of half precision as float32, others as they are. Any shape."""
    return vectors.float() if vectors.dtype in HALF_TYPES else vectors


def info_nce(
    query: Tensor,
    target: Tensor,
    target_candidates: Tensor,
    query_candidates: Tensor,
    *,
    target_excluded: Tensor,
    query_excluded: Tensor,
    temperature: float,
) -> Tensor:
    """Symmetric InfoNCE: half of the cross-entropies of both directions.

    Query i must tell its target from the candidates that are not excluded, and target i its query. The
    candidates may contain the pair itself: it must then be excluded, since it enters as the positive.

    Shapes:
        query, target: [B, D] unit rows
        target_candidates: [K, D] targets of all pairs, then explicit hard negatives
        query_candidates: [C, D] queries of all pairs
        target_excluded: [B, K] bool, true: the candidate leaves the denominator
        query_excluded: [B, C] bool
        returns: [B]
    Reference:
        van den Oord et al. 2018, arXiv 1807.03748, eq. 4; both directions as in Radford et al. 2021,
        arXiv 2103.00020
    """
    right = similarity(query, target)
    to_target = _cross_entropy(right, query, target_candidates, target_excluded, temperature)
    to_query = _cross_entropy(right, target, query_candidates, query_excluded, temperature)
    return (to_target + to_query) / 2


def _cross_entropy(
    right: Tensor, anchor: Tensor, candidates: Tensor, excluded: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of the answer, whose cosine is `right`, among itself and those not excluded: [B]."""
    wrong = (at_least_float32(anchor) @ at_least_float32(candidates).T).masked_fill(excluded, -torch.inf)
    logits = torch.cat([right[:, None], wrong], dim=1) / temperature
    return -torch.log_softmax(logits, dim=1)[:, 0]


def score_mse(query: Tensor, target: Tensor, score: Tensor) -> Tensor:
    """Squared error of the cosine against a score.

    Shapes:
        query, target: [B, D] unit rows
        score: [B] in [0, 1]; NaN: the pair has none, value 0
        returns: [B]
    """
    scored = ~score.isnan()
    cosines = similarity(query, target)
    return torch.where(scored, (cosines - score.nan_to_num().to(cosines.dtype)) ** 2, 0.0)


def cosine(query: Tensor, target: Tensor) -> Tensor:
    """Cosine distance 1 - cos(q, t).

    Shapes:
        query, target: [B, D] unit rows
        returns: [B]
    """
    return 1 - similarity(query, target)


def triplet_margin(
    query: Tensor,
    target: Tensor,
    target_candidates: Tensor,
    *,
    target_excluded: Tensor,
    margin: float,
) -> Tensor:
    """relu(margin - cos(q, t) + cos(q, t')) with the hardest candidate t' that is not excluded.

    0 where no candidate is left.

    Shapes:
        query, target: [B, D] unit rows
        target_candidates: [K, D] targets of all pairs, then explicit hard negatives
        target_excluded: [B, K] bool
        returns: [B]
    Reference:
        Schroff et al. 2015, arXiv 1503.03832, eq. 3, on cosines; hardest in the batch as in Hermans et al.
        2017, arXiv 1703.07737
    """
    wrong = (at_least_float32(query) @ at_least_float32(target_candidates).T).masked_fill(
        target_excluded, -torch.inf
    )
    nothing = wrong.new_full((len(wrong), 1), -torch.inf)
    hardest = torch.cat([nothing, wrong], dim=1).max(dim=1).values
    return torch.relu(margin - similarity(query, target) + hardest)


def uniformity(anchor: Tensor, candidates: Tensor, *, excluded: Tensor) -> Tensor:
    """How crowded the sphere is around an anchor: log of the mean of exp(-2 |x - y|²) over candidates.

    0 (as crowded as can be) would be all candidates in one point; 0 too where no candidate is left. The
    logarithm stands inside the mean over anchors, so that chunks add up; Wang and Isola's metric takes it
    outside.

    Shapes:
        anchor: [B, D] unit rows
        candidates: [C, D] unit rows
        excluded: [B, C] bool
        returns: [B]
    Reference:
        Wang and Isola 2020, arXiv 2005.10242, eq. 2 (the limit, theorem 1) with the kernel of section 4.1.2
    """
    # |x - y|² = 2 - 2 x·y on the sphere
    kernel = (4 * (at_least_float32(anchor) @ at_least_float32(candidates).T) - 4).masked_fill(
        excluded, -torch.inf
    )
    left = (~excluded).sum(dim=1)
    mean = torch.logsumexp(kernel, dim=1) - left.clamp(min=1).to(kernel.dtype).log()
    return torch.where(left > 0, mean, 0.0)


def similarity(query: Tensor, target: Tensor) -> Tensor:
    """Cosine of each pair of unit rows: [B, D], [B, D] -> [B]."""
    return (at_least_float32(query) * at_least_float32(target)).sum(dim=1)


def matryoshka(vectors: Tensor, dim: int) -> Tensor:
    """The first `dim` components of each row, as unit rows.

    Shapes:
        vectors: [N, D]
        returns: [N, dim]
    Reference:
        Kusupati et al. 2022, arXiv 2205.13147
    """
    assert 0 < dim <= vectors.shape[1], (dim, vectors.shape)
    return torch.nn.functional.normalize(at_least_float32(vectors)[:, :dim], dim=1)
