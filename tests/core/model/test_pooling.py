"""Each pooling is a weighted mean of its own segment's tokens."""

import math

import pytest
import torch
from torch import Tensor

from vipolyqwen_core.config import LEARNED_POOLINGS, Pooling
from vipolyqwen_core.model.pooling import POOLINGS, AttentionPooling, concentration, pool, segment_softmax

LENGTHS = [3, 1, 5]
IDS = torch.repeat_interleave(torch.tensor(LENGTHS))
KINDS = tuple(Pooling)


def hidden_states(seed: int = 0) -> Tensor:
    return torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(seed))


def made(kind: Pooling) -> torch.nn.Module:
    pooling = POOLINGS[kind](8, 4)
    if isinstance(pooling, AttentionPooling):
        torch.nn.init.normal_(pooling.context, generator=torch.Generator().manual_seed(1))
    assert isinstance(pooling, torch.nn.Module)
    return pooling


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_segment_sum_to_one(kind: Pooling) -> None:
    weights = made(kind).weights(hidden_states(), IDS, 3)
    assert (weights >= 0).all()
    for part in weights.split(LENGTHS):
        torch.testing.assert_close(part.sum(0), torch.ones(weights.shape[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_ignores_all_others(kind: Pooling) -> None:
    pooling = made(kind)
    hidden = hidden_states()
    changed = hidden.clone()
    changed[IDS != 2] = 1e4
    vectors = [pool(rows, pooling.weights(rows, IDS, 3), IDS, 3)[2] for rows in (hidden, changed)]
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=0)
    alone = hidden[IDS == 2]
    zeros = torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(pool(alone, pooling.weights(alone, zeros, 1), zeros, 1)[0], vectors[0])


def test_attention_is_the_softmax_of_dot_products() -> None:
    pooling = made(Pooling.ATTENTION)
    hidden = hidden_states()
    pooled = pool(hidden, pooling.weights(hidden, IDS, 3), IDS, 3)
    context = pooling.context[0]
    expected = torch.stack([(part @ context).softmax(0) @ part for part in hidden.split(LENGTHS)])
    torch.testing.assert_close(pooled, expected)


def test_heads_weigh_their_own_slices() -> None:
    pooling = made(Pooling.MULTI_HEAD_ATTENTION)
    hidden = hidden_states()
    pooled = pool(hidden, pooling.weights(hidden, IDS, 3), IDS, 3)
    slices = [
        torch.stack([(part @ head).softmax(0) @ part for part in rows.split(LENGTHS)])
        for head, rows in zip(pooling.context, hidden.split(2, dim=1), strict=True)
    ]
    torch.testing.assert_close(pooled, torch.cat(slices, dim=1))


def test_mean_and_last_are_what_they_say() -> None:
    hidden = hidden_states()
    means = torch.stack([part.mean(0) for part in hidden.split(LENGTHS)])
    lasts = torch.stack([part[-1] for part in hidden.split(LENGTHS)])
    for kind, expected in ((Pooling.MEAN, means), (Pooling.LAST, lasts)):
        torch.testing.assert_close(pool(hidden, made(kind).weights(hidden, IDS, 3), IDS, 3), expected)


@pytest.mark.parametrize("kind", [Pooling.ATTENTION, Pooling.MULTI_HEAD_ATTENTION])
def test_attention_begins_as_the_mean(kind: Pooling) -> None:
    hidden = hidden_states()
    fresh = POOLINGS[kind](8, 4).weights(hidden, IDS, 3)
    torch.testing.assert_close(fresh.mean(1, keepdim=True), made(Pooling.MEAN).weights(hidden, IDS, 3))


def test_large_scores_do_not_overflow() -> None:
    scores = torch.tensor([[1e4], [1e4], [-1e4], [3e38], [0.0]])
    weights = segment_softmax(scores, torch.tensor([0, 0, 1, 2, 2]), 3)
    assert weights.flatten().tolist() == [0.5, 0.5, 1.0, 1.0, 0.0]


def test_gradients_hold_by_finite_differences() -> None:
    hidden = hidden_states().double().requires_grad_()
    context = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def pooled(rows: Tensor, vectors: Tensor) -> Tensor:
        scores = (rows.unflatten(1, vectors.shape) * vectors).sum(2)
        return pool(rows, segment_softmax(scores, IDS, 3), IDS, 3)

    assert torch.autograd.gradcheck(pooled, (hidden, context))


@pytest.mark.parametrize("num_heads", [1, 3])
def test_concentration_is_what_entropy_lacks_of_that_of_even_weights(num_heads: int) -> None:
    scores = torch.randn(sum(LENGTHS), num_heads, dtype=torch.float64, requires_grad=True)
    weights = segment_softmax(scores, IDS, 3)
    expected = []
    for part in weights.split(LENGTHS):
        entropies = [-sum(weight * math.log(weight) for weight in head) for head in part.T.tolist()]
        most = math.log(len(part)) or 1.0
        expected.append(sum(1 - entropy / most for entropy in entropies) / num_heads)
    expected[1] = 0.0  # a token alone
    found = concentration(weights, IDS, 3)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda given: concentration(segment_softmax(given, IDS, 3), IDS, 3), scores
    )


def test_concentration_of_even_weights_is_0_and_that_of_a_single_weight_1_with_finite_gradients() -> None:
    scores = torch.tensor(
        [[0.0], [0.0], [0.0], [5.0], [1e4], [0.0], [0.0], [-1e4], [0.0]], requires_grad=True
    )
    found = concentration(segment_softmax(scores, IDS, 3), IDS, 3)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0]))
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_poolings_with_weights_to_learn_are_those_of_the_settings() -> None:
    assert {kind for kind in Pooling if list(made(kind).parameters())} == set(LEARNED_POOLINGS)


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="pooling_heads 3 does not divide the hidden size 8"):
        AttentionPooling(8, 3)
