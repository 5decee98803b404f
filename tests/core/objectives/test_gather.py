"""Candidates from all ranks: two and three gloo processes equal one in loss and gradients."""

import pytest
import torch
import torch.distributed as dist

from tests.core.distributed import run_on_ranks
from tests.core.objectives.examples import gradients, leaves, mixed_pairs
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.negatives import gather
from vipolyqwen_core.objectives.pairs import PairVectors, join_pairs
from vipolyqwen_core.objectives.routing import compute_losses

SETTINGS = ObjectiveSettings(temperature=0.2, uniformity_weight=0.1)


def losses_on_a_rank(parts: list[PairVectors]):
    """Loss, gradients and terms of this rank's part against the candidates of all ranks."""
    pairs = leaves(parts[dist.get_rank()])
    candidates = gather(pairs)
    num_pairs = sum(part.num_pairs for part in parts)
    losses = compute_losses(pairs, candidates, SETTINGS, num_step_pairs=num_pairs, matryoshka_dims=(4,))
    losses.total.backward()
    reduced = losses.terms.reduced()
    return (
        losses.total.detach(),
        gradients(pairs),
        reduced.sums,
        reduced.counts,
        candidates.stacked().detach(),
    )


def in_one_process(parts: list[PairVectors]):
    joined = leaves(join_pairs(parts))
    losses = compute_losses(joined, joined, SETTINGS, num_step_pairs=joined.num_pairs, matryoshka_dims=(4,))
    losses.total.backward()
    return joined, losses


def assert_equal_to_one_process(parts: list[PairVectors]):
    joined, losses = in_one_process(parts)
    results = run_on_ranks(losses_on_a_rank, len(parts), parts)
    assert abs(sum(result[0] for result in results) - losses.total) < 1e-9
    first = 0
    for part, (_, gradient, sums, counts, candidates) in zip(parts, results, strict=True):
        rows, mine = slice(first, first + part.num_pairs), joined.keys.negative_pair
        theirs = (mine >= rows.start) & (mine < rows.stop)
        expected = torch.cat(
            [joined.query.grad[rows], joined.target.grad[rows], joined.negatives.grad[theirs]]
        )
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-9)
        assert torch.allclose(sums, losses.terms.sums, rtol=0, atol=1e-9)
        assert torch.equal(counts, losses.terms.counts)
        assert torch.equal(candidates, joined.stacked())
        first = rows.stop


def test_two_ranks_with_unequal_rows_and_hard_negatives_equal_one_process():
    parts = [mixed_pairs(9, seed=1), mixed_pairs(4, seed=2)]
    assert parts[0].keys.num_negatives != parts[1].keys.num_negatives
    assert_equal_to_one_process(parts)


def test_a_task_that_only_one_rank_has_neither_hangs_nor_changes_the_result():
    assert_equal_to_one_process(
        [
            mixed_pairs(6, seed=3, tasks=(Task.TEXT_PAIR, Task.OCR)),
            mixed_pairs(5, seed=4, tasks=(Task.INSTR,)),
            mixed_pairs(3, seed=5, tasks=(Task.OCR,)),
        ]
    )


def test_a_rank_without_any_pair_takes_part():
    assert_equal_to_one_process([mixed_pairs(5, seed=6), mixed_pairs(5, seed=7).slice(0, 0)])


def test_one_process_gathers_itself():
    pairs = mixed_pairs(4)
    assert gather(pairs) is pairs


def fail_on_rank_1():
    if dist.get_rank() == 1:
        raise RuntimeError("as planned")
    dist.barrier()


def test_the_harness_shows_the_traceback_of_the_rank_that_failed():
    with pytest.raises(AssertionError, match=r"rank 1:[\s\S]*as planned"):
        run_on_ranks(fail_on_rank_1, 2)
