"""The pure losses: closed-form values, gradients by finite differences, precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.objectives.examples import unit_rows
from vipolyqwen_core.objectives import losses


def nothing_excluded(num_anchors, num_candidates):
    return torch.zeros(num_anchors, num_candidates, dtype=torch.bool)


def in_batch(query, target, temperature=0.07):
    """`info_nce` of a batch without equal contents."""
    own = torch.eye(len(query), dtype=torch.bool)
    return losses.info_nce(
        query,
        target,
        target,
        query,
        target_excluded=own,
        query_excluded=own,
        temperature=temperature,
    )


@pytest.mark.parametrize("num_pairs", [1, 2, 7, 100])
def test_info_nce_of_equal_similarities_is_the_log_of_the_number_of_candidates(num_pairs):
    zeros = torch.zeros(num_pairs, 4, dtype=torch.float64)
    assert torch.allclose(in_batch(zeros, zeros), torch.tensor(math.log(num_pairs), dtype=torch.float64))


def test_info_nce_counts_hard_negatives_in_the_query_direction_only():
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    own = torch.eye(3, dtype=torch.bool)
    value = losses.info_nce(
        zeros,
        zeros,
        torch.zeros(3 + 5, 4, dtype=torch.float64),
        zeros,
        target_excluded=torch.cat([own, nothing_excluded(3, 5)], dim=1),
        query_excluded=own,
        temperature=0.07,
    )
    assert value.tolist() == pytest.approx([(math.log(8) + math.log(3)) / 2] * 3)


def test_info_nce_of_orthogonal_pairs_has_its_closed_form():
    rows = torch.eye(5, dtype=torch.float64)
    expected = math.log(1 + 4 * math.exp(-1 / 0.5))
    assert in_batch(rows, rows, temperature=0.5).tolist() == pytest.approx([expected] * 5)


def test_info_nce_equals_torchs_cross_entropy_over_the_similarity_matrix():
    generator = torch.Generator().manual_seed(0)
    query, target = unit_rows(9, 16, generator), unit_rows(9, 16, generator)
    logits, labels = query @ target.T / 0.07, torch.arange(9)
    expected = (
        torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        + torch.nn.functional.cross_entropy(logits.T, labels, reduction="none")
    ) / 2
    assert torch.allclose(in_batch(query, target), expected, rtol=0, atol=1e-12)


def test_info_nce_without_any_negative_is_zero_and_has_no_gradient():
    generator = torch.Generator().manual_seed(1)
    query, target = (unit_rows(2, 4, generator).requires_grad_() for _ in range(2))
    everything = torch.ones(2, 2, dtype=torch.bool)
    value = losses.info_nce(
        query,
        target,
        target,
        query,
        target_excluded=everything,
        query_excluded=everything,
        temperature=0.07,
    )
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0]
    assert not query.grad.any()
    assert not target.grad.any()


def test_score_mse_is_the_squared_distance_of_the_cosine_and_ignores_pairs_without_score():
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    values = losses.score_mse(query, target, torch.tensor([0.25, 0.5, math.nan], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0.75**2, 0.1**2, 0.0])
    values.sum().backward()
    assert query.grad[2].tolist() == [0.0, 0.0]


def test_cosine_is_zero_for_equal_and_two_for_opposite_vectors():
    rows = torch.eye(3, dtype=torch.float64)
    assert losses.cosine(rows, rows).tolist() == [0.0, 0.0, 0.0]
    assert losses.cosine(rows, -rows).tolist() == [2.0, 2.0, 2.0]


def test_triplet_margin_takes_the_hardest_candidate_that_is_not_excluded():
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    candidates = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)

    def value(excluded):
        return losses.triplet_margin(
            query, target, candidates, target_excluded=torch.tensor([excluded]), margin=0.2
        ).item()

    assert value([False, False, False]) == pytest.approx(0.2 - 0.6 + 1.0)
    assert value([True, False, False]) == pytest.approx(0.2 - 0.6 + 0.8)
    assert value([True, True, False]) == 0.0  # further away than the margin
    assert value([True, True, True]) == 0.0  # none left
    nobody = losses.triplet_margin(
        query, target, candidates[:0], target_excluded=nothing_excluded(1, 0), margin=0.2
    )
    assert nobody.tolist() == [0.0]


def test_triplet_margin_without_candidates_has_a_zero_gradient():
    generator = torch.Generator().manual_seed(2)
    query, target = (unit_rows(3, 4, generator).requires_grad_() for _ in range(2))
    excluded = torch.ones(3, 3, dtype=torch.bool)
    losses.triplet_margin(query, target, target, target_excluded=excluded, margin=0.2).sum().backward()
    assert not query.grad.any()
    assert not target.grad.any()


def test_uniformity_is_zero_for_one_point_and_minus_eight_for_opposite_ones():
    point = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    free = nothing_excluded(1, 4)
    assert losses.uniformity(point, point.repeat(4, 1), excluded=free).item() == pytest.approx(0.0)
    assert losses.uniformity(point, -point.repeat(4, 1), excluded=free).item() == pytest.approx(-8.0)


def test_uniformity_of_a_set_equals_the_plain_formula():
    rows = unit_rows(6, 5, torch.Generator().manual_seed(3))
    excluded = torch.ones(6, 6, dtype=torch.bool).triu()  # of row i those before it are left
    values = losses.uniformity(rows, rows, excluded=excluded)
    for i in range(1, 6):
        kernel = [math.exp(-2 * ((rows[i] - rows[j]) ** 2).sum().item()) for j in range(i)]
        assert values[i].item() == pytest.approx(math.log(sum(kernel) / i), abs=1e-12)


def test_uniformity_without_candidates_is_zero_with_a_zero_gradient():
    rows = unit_rows(3, 4, torch.Generator().manual_seed(4)).requires_grad_()
    values = losses.uniformity(rows, rows, excluded=torch.ones(3, 3, dtype=torch.bool))
    values.sum().backward()
    assert values.tolist() == [0.0] * 3
    assert not rows.grad.any()


@given(num_rows=st.integers(0, 6), dim=st.integers(1, 32), more=st.integers(0, 31), seed=st.integers(0, 99))
def test_every_matryoshka_slice_is_a_unit_vector(num_rows, dim, more, seed):
    rows = unit_rows(num_rows, dim + more, torch.Generator().manual_seed(seed))
    sliced = losses.matryoshka(rows, dim)
    assert sliced.shape == (num_rows, dim)
    assert torch.allclose(sliced.norm(dim=1), torch.ones(num_rows, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_float32_at_least_and_keep_float64(dtype):
    generator = torch.Generator().manual_seed(5)
    query, target = (unit_rows(4, 8, generator).to(dtype) for _ in range(2))
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    excluded = torch.eye(4, dtype=torch.bool)

    def values(query, target):
        return (
            in_batch(query, target),
            losses.score_mse(query, target, torch.full((4,), 0.5, dtype=torch.float64)),
            losses.cosine(query, target),
            losses.triplet_margin(query, target, target, target_excluded=excluded, margin=0.2),
            losses.uniformity(query, target, excluded=excluded),
        )

    # the same vectors in float64: nothing is rounded to half precision on the way
    for value, exact in zip(values(query, target), values(query.double(), target.double()), strict=True):
        assert value.dtype == wanted
        assert torch.allclose(value.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(6)
    query, target = (unit_rows(4, 5, generator).requires_grad_() for _ in range(2))
    hard = unit_rows(3, 5, generator).requires_grad_()
    excluded = torch.rand(4, 7, generator=generator) < 0.3
    excluded[:, :4] |= torch.eye(4, dtype=torch.bool)
    score = torch.tensor([0.2, math.nan, 0.9, 1.0], dtype=torch.float64)

    def every_loss(query, target, hard):
        wrong = torch.cat([target, hard])
        short = losses.matryoshka(query, 3), losses.matryoshka(target, 3)
        return (
            losses.info_nce(
                query,
                target,
                wrong,
                query,
                target_excluded=excluded,
                query_excluded=excluded[:, :4],
                temperature=0.3,
            ),
            losses.score_mse(query, target, score),
            losses.cosine(*short),
            losses.triplet_margin(query, target, wrong, target_excluded=excluded, margin=0.9),
            losses.uniformity(query, target, excluded=excluded[:, :4]),
        )

    assert torch.autograd.gradcheck(every_loss, (query, target, hard), eps=1e-7, atol=1e-6)
