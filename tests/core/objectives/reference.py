"""The losses of DESIGN.md written plainly: loops over pairs in float64, one pair and one candidate at a time.

Nothing is shared with the code under test but the contract's tasks.
"""

import math

from vipolyqwen_core.contract import Task

TERMS = {
    Task.TEXT_PAIR: ("info_nce", "score_mse"),
    Task.INSTR: ("info_nce", "cosine"),
    Task.OCR: ("info_nce", "triplet_margin"),
    Task.VQA_SINGLE: ("info_nce", "triplet_margin"),
    Task.VQA_MULTI: ("info_nce", "triplet_margin"),
}


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


class Pair:
    """One pair as plain numbers."""

    def __init__(self, task, query, target, query_hash, target_hash, positive, score, negatives):
        self.task, self.query, self.target = task, query, target
        self.query_hash, self.target_hash, self.positive_hash = query_hash, target_hash, positive
        self.score = score
        self.negatives = negatives  # (hash, hash of its pair's query, of its pair's key, vector)


def plain_pairs(pairs):
    """`PairVectors` as a list of `Pair`."""
    tasks = tuple(Task)
    keys = pairs.keys
    plain = []
    for i in range(pairs.num_pairs):
        score = keys.score[i].item()
        negatives = [
            (
                keys.negative_hash[k].item(),
                keys.negative_query_hash[k].item(),
                keys.negative_positive_hash[k].item(),
                pairs.negatives[k].tolist(),
            )
            for k in range(keys.num_negatives)
            if keys.negative_pair[k] == i
        ]
        plain.append(
            Pair(
                tasks[keys.task[i]],
                pairs.query[i].tolist(),
                pairs.target[i].tolist(),
                keys.query_hash[i].item(),
                keys.target_hash[i].item(),
                keys.positive_hash[i].item(),
                None if math.isnan(score) else score,
                negatives,
            )
        )
    return plain


def known_false(anchor, other):
    return (
        other.target_hash == anchor.target_hash
        or other.query_hash == anchor.query_hash
        or (anchor.positive_hash != 0 and other.positive_hash == anchor.positive_hash)
    )


def wrong_targets(anchor, candidates, cross_task=False, hard=True):
    """Vectors of the targets and hard negatives that an anchor's query is told from."""
    wrong = []
    for other in candidates:
        if not cross_task and other.task != anchor.task:
            continue
        if not known_false(anchor, other) and other.target_hash != anchor.query_hash:
            wrong.append(other.target)
        for content, of_query, of_key, vector in other.negatives if hard else ():
            same_key = anchor.positive_hash != 0 and of_key == anchor.positive_hash
            if (
                content in (anchor.target_hash, anchor.query_hash)
                or of_query == anchor.query_hash
                or same_key
            ):
                continue
            wrong.append(vector)
    return wrong


def wrong_queries(anchor, candidates, cross_task=False):
    """Vectors of the queries that an anchor's target is told from."""
    return [
        other.query
        for other in candidates
        if (cross_task or other.task == anchor.task)
        and not known_false(anchor, other)
        and other.query_hash != anchor.target_hash
    ]


def cross_entropy(anchor, answer, wrong, temperature):
    right = math.exp(dot(anchor, answer) / temperature)
    return -math.log(right / (right + sum(math.exp(dot(anchor, other) / temperature) for other in wrong)))


def crowding(anchor, others):
    """Logarithm of the mean of exp(-2 |x - y|²); 0 without others."""
    if not others:
        return 0.0
    distances = [sum((a - b) ** 2 for a, b in zip(anchor, other, strict=True)) for other in others]
    return math.log(sum(math.exp(-2 * distance) for distance in distances) / len(distances))


def sliced(pair, dim):
    """The pair with the first numbers of its vectors, of unit length again."""

    def head(vector):
        length = math.sqrt(sum(value * value for value in vector[:dim]))
        return [value / length for value in vector[:dim]]

    return Pair(
        pair.task,
        head(pair.query),
        head(pair.target),
        pair.query_hash,
        pair.target_hash,
        pair.positive_hash,
        pair.score,
        [(*hashes, head(vector)) for *hashes, vector in pair.negatives],
    )


def terms_of(anchor, candidates, settings):
    """Name -> value of the terms that an anchor takes part in."""
    values = {}
    if settings.uniformity_weight:
        values["uniformity"] = (
            crowding(anchor.query, wrong_queries(anchor, candidates, settings.cross_task_negatives))
            + crowding(anchor.target, wrong_targets(anchor, candidates, settings.cross_task_negatives, False))
        ) / 2
    positive = anchor.score is None or anchor.score >= settings.positive_score
    targets = wrong_targets(anchor, candidates, settings.cross_task_negatives)
    queries = wrong_queries(anchor, candidates, settings.cross_task_negatives)
    for term in TERMS[anchor.task]:
        if term == "score_mse":
            if anchor.score is not None:
                values[term] = (dot(anchor.query, anchor.target) - anchor.score) ** 2
        elif not positive:
            continue
        elif term == "info_nce":
            values[term] = (
                cross_entropy(anchor.query, anchor.target, targets, settings.temperature)
                + cross_entropy(anchor.target, anchor.query, queries, settings.temperature)
            ) / 2
        elif term == "cosine":
            values[term] = 1 - dot(anchor.query, anchor.target)
        elif term == "triplet_margin":
            values[term] = 0.0
            if targets:
                hardest = max(dot(anchor.query, other) for other in targets)
                values[term] = max(0.0, settings.margin - dot(anchor.query, anchor.target) + hardest)
    return values


def total(anchors, candidates, settings, num_step_pairs, matryoshka_dims=()):
    """The step's share of these anchors, the mean over the whole vectors and their slices."""
    weights = {**settings.term_weights, "uniformity": settings.uniformity_weight}
    summed = 0.0
    for dim in (None, *matryoshka_dims):
        mine, others = (
            [pair if dim is None else sliced(pair, dim) for pair in pairs] for pairs in (anchors, candidates)
        )
        summed += sum(
            settings.task_weights.get(anchor.task, 1.0) * weights.get(term, 1.0) * value
            for anchor in mine
            for term, value in terms_of(anchor, others, settings).items()
        )
    return summed / (1 + len(matryoshka_dims)) / num_step_pairs
