"""The collapse watch: known figures for a point, a sphere and orthogonal pairs."""

import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.core.distributed import run_on_ranks
from tests.core.objectives.examples import mixed_pairs, unit_rows
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives import collapse_watch as watch
from vipolyqwen_core.objectives.collapse_watch import collapse_watch, effective_rank
from vipolyqwen_core.objectives.pairs import PairVectors, join_pairs, pair_keys, split_vectors

DEFAULT = ObjectiveSettings()


def pairs_of(query, target, scores=None):
    number = len(query)
    keys = pair_keys([Task.TEXT_PAIR] * number, range(1, number + 1), range(101, number + 101), scores=scores)
    return PairVectors(query, target, query.new_zeros(0, query.shape[1]), keys)


def test_one_point_shows_as_collapse():
    point = torch.eye(1, 8, dtype=torch.float64).repeat(5, 1)
    figures = collapse_watch(pairs_of(point, point), DEFAULT)
    assert figures["uniformity"] == pytest.approx(0.0)
    assert figures["effective_rank"] == pytest.approx(1.0)
    assert figures["deviation"] == pytest.approx(0.0)
    assert figures["gap"] == pytest.approx(0.0)
    assert figures["negative_similarity@0.5"] == pytest.approx(1.0)


def test_orthogonal_pairs_have_full_rank_and_perfect_alignment():
    rows = torch.eye(6, dtype=torch.float64)
    figures = collapse_watch(pairs_of(rows, rows), DEFAULT)
    assert figures["effective_rank"] == pytest.approx(6.0)
    assert figures["alignment"] == pytest.approx(0.0)
    assert figures["gap"] == pytest.approx(1.0)


def test_unequal_directions_give_the_entropy_of_the_singular_values():
    rows = torch.eye(2, dtype=torch.float64)[[0] * 9 + [1]]  # singular values in the ratio 3 to 1
    figures = collapse_watch(pairs_of(rows, rows), DEFAULT)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert figures["effective_rank"] == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 0.0])
@pytest.mark.parametrize("number", [8, 200])
def test_the_effective_rank_is_that_of_the_singular_values(number, spread):
    noise = torch.randn(number, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(1 + spread * noise, dim=1)
    shares = torch.linalg.svdvals(rows.double())
    shares = shares / shares.sum()
    expected = torch.exp(torch.special.entr(shares).sum())
    assert float(effective_rank(rows)) == pytest.approx(float(expected), abs=1e-5)


def test_alignment_is_the_squared_distance_of_the_pairs():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    figures = collapse_watch(pairs_of(query, target), DEFAULT)
    assert figures["alignment"] == pytest.approx((0.4**2 + 0.8**2) / 2)


def test_negatives_are_those_that_the_losses_use():
    rows = torch.eye(2, dtype=torch.float64)
    pairs = PairVectors(rows, rows, rows[:0], pair_keys([Task.OCR, Task.INSTR], [1, 2], [3, 4]))
    assert "negative_similarity@0.5" not in collapse_watch(pairs, DEFAULT)
    assert "negative_similarity@0.5" in collapse_watch(pairs, ObjectiveSettings(cross_task_negatives=True))


def test_random_vectors_on_a_sphere_are_spread():
    generator = torch.Generator().manual_seed(0)
    figures = collapse_watch(pairs_of(unit_rows(400, 64, generator), unit_rows(400, 64, generator)), DEFAULT)
    assert figures["deviation"] == pytest.approx(1.0, abs=0.01)
    assert figures["uniformity"] == pytest.approx(-4 + 8 / 64, abs=0.02)  # E exp(4 x·y), x·y of variance 1/64
    assert figures["effective_rank"] > 50


def test_a_pair_under_the_threshold_is_no_positive():
    rows = torch.eye(2, dtype=torch.float64)
    figures = collapse_watch(pairs_of(rows, rows.flip(0), scores=[0.1, 0.2]), DEFAULT)
    assert "alignment" not in figures
    assert "negative_similarity@0.5" in figures


def test_many_hard_negatives_a_pair_are_looked_at_in_part():
    number, hard = 1024, 16  # more cosines than torch.quantile takes
    generator = torch.Generator().manual_seed(0)
    keys = pair_keys(
        [Task.OCR] * number,
        range(1, number + 1),
        range(2001, number + 2001),
        negative_hashes=[range(10_000 + hard * pair, 10_000 + hard * (pair + 1)) for pair in range(number)],
    )
    rows = unit_rows((2 + hard) * number, 4, generator, torch.float32)
    figures = collapse_watch(split_vectors(rows, keys), DEFAULT)
    assert figures["negative_similarity@0.5"] == pytest.approx(0.0, abs=0.01)
    rows[:] = torch.eye(1, 4)
    rows[number // 2 : number] *= -1  # the second half of the queries
    figures = collapse_watch(split_vectors(rows, keys), DEFAULT)
    assert figures["negative_similarity@0.05"] == pytest.approx(-1.0)
    assert figures["negative_similarity@0.95"] == pytest.approx(1.0)


def collapsed_in_part(parts: list[PairVectors]) -> dict[str, float]:
    return collapse_watch(parts[dist.get_rank()], DEFAULT)


def test_figures_are_of_all_ranks():
    """The first rank has the first task of a step, and that may be the only one that has collapsed."""
    pairs = mixed_pairs(20)
    pairs.query[:8] = pairs.target[:8] = torch.eye(1, 8, dtype=torch.float64)
    parts = [pairs.slice(0, 8), pairs.slice(8, 20)]
    assert run_on_ranks(collapsed_in_part, 2, parts) == [collapse_watch(pairs, DEFAULT)] * 2


def num_looked_at(parts: list[PairVectors]) -> int:
    with mock.patch.multiple(watch, MAX_PAIRS=10, gather=mock.Mock(wraps=watch.gather)):
        watch.collapse_watch(parts[dist.get_rank()], DEFAULT)
        ((thinned,), _) = watch.gather.call_args
    return thinned.num_pairs


def test_ranks_together_look_at_no_more_pairs_than_one():
    pairs = mixed_pairs(40)
    assert run_on_ranks(num_looked_at, 2, [pairs.slice(0, 20), pairs.slice(20, 40)]) == [5, 5]


def test_of_a_large_step_pairs_at_even_distances_are_looked_at():
    query = torch.eye(1, 2).repeat(4096, 1)
    target = query.clone()
    target[1024:] *= -1
    assert collapse_watch(pairs_of(query, target), DEFAULT)["alignment"] == pytest.approx(3.0)


@pytest.mark.parametrize("number", [1, 7, 23, 24, 99])
def test_thinned_pairs_keep_their_own_hard_negatives(number):
    pairs = mixed_pairs(24)
    kept = pairs.thinned(number)
    places = [place * 24 // min(number, 24) for place in range(min(number, 24))]
    alone = join_pairs([pairs.slice(place, place + 1) for place in places])
    for one, other in ((kept, alone), (kept.keys, alone.keys)):
        for name, tensor in vars(other).items():
            if isinstance(tensor, torch.Tensor):
                torch.testing.assert_close(vars(one)[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("number", [0, 1, 2, 30])
def test_any_number_of_pairs_gives_finite_figures(number):
    figures = collapse_watch(mixed_pairs(30).slice(0, number), DEFAULT)
    assert all(torch.tensor(value).isfinite() for value in figures.values())
    assert bool(figures) == (number > 0)
