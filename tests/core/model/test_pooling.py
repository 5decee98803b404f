"""Each pooling is a weighted mean of its own segment's tokens."""

import pytest
import torch
from torch import Tensor

from vipolyqwen_core.config import Pooling
from vipolyqwen_core.model.pooling import POOLINGS, AttentionPooling, pool, segment_softmax

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


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="pooling_heads 3 does not divide the hidden size 8"):
        AttentionPooling(8, 3)
