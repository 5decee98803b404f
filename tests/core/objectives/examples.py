"""Pairs for the tests of the objectives: random unit vectors with keys of every kind."""

from dataclasses import replace

import torch

from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.pairs import PairVectors, pair_keys

TASKS_IN_TURN = (Task.TEXT_PAIR, Task.INSTR, Task.OCR, Task.VQA_SINGLE, Task.VQA_MULTI, Task.TEXT_PAIR)


def unit_rows(num_rows: int, dim: int, generator: torch.Generator, dtype=torch.float64) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=generator, dtype=dtype), dim=1)


def mixed_pairs(num_pairs: int = 24, dim: int = 8, seed: int = 0, tasks=TASKS_IN_TURN) -> PairVectors:
    """Pairs of several tasks with repeated queries, targets and positive keys, scores, hard negatives.

    Some hard negatives are the target of another pair, and have its query and its key.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> list[int]:
        return torch.randint(0, high, (num_pairs,), generator=generator).tolist()

    contents = max(2, num_pairs // 2)  # few contents, so that equal ones meet
    queries, targets = draw(contents), draw(contents)
    of_task = [tasks[i % len(tasks)] for i in range(num_pairs)]
    scores = [
        level / 4 if task is Task.TEXT_PAIR and index % 3 else None
        for index, (task, level) in enumerate(zip(of_task, draw(5), strict=True))
    ]
    # some hard negatives repeat a target or a query of the batch, some are new
    negatives = [
        [(value + k * 5) % (3 * contents) + 1 for k in range(count)]
        for value, count in zip(draw(3 * contents), draw(3), strict=True)
    ]
    keys = pair_keys(
        of_task,
        [value + 1 for value in queries],
        [value + 1 + contents // 2 for value in targets],  # half of the range is shared by both sides
        scores=scores,
        positive_hashes=[value if value < 3 else 0 for value in draw(12)],
        negative_hashes=negatives,
        negative_query_hashes=[[draw(contents)[0] for _ in of_pair] for of_pair in negatives],
        negative_positive_hashes=[[draw(5)[0] for _ in of_pair] for of_pair in negatives],
    )
    return PairVectors(
        unit_rows(num_pairs, dim, generator),
        unit_rows(num_pairs, dim, generator),
        unit_rows(keys.num_negatives, dim, generator),
        keys,
    )


def with_concentration(pairs: PairVectors, seed: int = 0) -> PairVectors:
    """The same pairs, of a model that was asked how even its pooling is."""
    generator = torch.Generator().manual_seed(seed)
    return replace(pairs, concentration=torch.rand(pairs.num_pairs, generator=generator, dtype=torch.float64))


def leaves(pairs: PairVectors) -> PairVectors:
    """The same pairs with vectors that collect gradients."""
    return pairs.map(lambda given: given.detach().clone().requires_grad_())


def gradients(pairs: PairVectors) -> torch.Tensor:
    """[2B + M, D] gradients of the leaves; every leaf must have one."""
    return torch.cat([vectors.grad for vectors in (pairs.query, pairs.target, pairs.negatives)])
