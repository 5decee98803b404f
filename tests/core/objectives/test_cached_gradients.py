"""Cached gradients: those of the plain loss, in blocks, over ranks, and through a model chunk by chunk."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.core.distributed import run_on_ranks
from tests.core.objectives.examples import gradients, leaves, mixed_pairs, with_concentration
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.cached_gradients import cached_gradients
from vipolyqwen_core.objectives.pairs import PairVectors, join_pairs, split_vectors
from vipolyqwen_core.objectives.routing import compute_losses

SETTINGS = ObjectiveSettings(temperature=0.2)
WITH_ENTROPY = replace(SETTINGS, pooling_entropy_weight=0.3)


def plain(pairs: PairVectors, settings: ObjectiveSettings = SETTINGS, **options):
    pairs = leaves(pairs)
    losses = compute_losses(pairs, pairs, settings, num_step_pairs=pairs.num_pairs, **options)
    losses.total.backward()
    return losses, pairs


@pytest.mark.parametrize("block_entries", [1, 200, 600, 2**18])
def test_any_block_size_gives_the_plain_loss_and_gradients(block_entries):
    pairs = with_concentration(mixed_pairs(20, seed=1))
    options = {"matryoshka_dims": (4,), "task_weights": {Task.OCR: 3.0}}
    expected, with_gradients = plain(pairs, WITH_ENTROPY, **options)
    losses, gradient = cached_gradients(
        pairs, WITH_ENTROPY, num_step_pairs=20, block_entries=block_entries, **options
    )
    assert losses.total.item() == pytest.approx(expected.total.item(), rel=1e-12)
    assert torch.allclose(gradient.stacked(), gradients(with_gradients), rtol=0, atol=1e-12)
    assert torch.allclose(gradient.concentration, with_gradients.concentration.grad, rtol=0, atol=1e-12)
    assert torch.allclose(losses.terms.sums, expected.terms.sums)
    assert torch.equal(losses.terms.counts, expected.terms.counts)


def test_a_rank_without_pairs_has_no_loss_and_an_empty_gradient():
    losses, gradient = cached_gradients(mixed_pairs(4).slice(0, 0), SETTINGS, num_step_pairs=4)
    assert losses.total.item() == 0.0
    assert losses.terms.means() == {}
    assert gradient.stacked().shape == (0, 8)


def test_chunks_through_a_model_give_the_gradients_of_the_whole_step():
    pairs = mixed_pairs(12, seed=2)
    inputs = pairs.stacked()
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 6).double()

    def embed(rows):
        return torch.nn.functional.normalize(model(rows), dim=1)

    whole = split_vectors(embed(inputs), pairs.keys)
    compute_losses(whole, whole, SETTINGS, num_step_pairs=12).total.backward()
    expected = model.weight.grad.clone()
    model.zero_grad()

    with torch.no_grad():
        vectors = embed(inputs)
    _, gradient = cached_gradients(split_vectors(vectors, pairs.keys), SETTINGS, num_step_pairs=12)
    for rows, of_rows in zip(inputs.split(5), gradient.stacked().split(5), strict=True):
        (embed(rows) * of_rows).sum().backward()
    assert torch.allclose(model.weight.grad, expected, rtol=0, atol=1e-12)


def cached_on_a_rank(parts: list[PairVectors]):
    with torch.no_grad():
        losses, gradient = cached_gradients(
            parts[dist.get_rank()],
            SETTINGS,
            num_step_pairs=sum(part.num_pairs for part in parts),
            block_entries=80,
        )
    return losses.total, gradient.stacked()


def test_two_ranks_with_different_numbers_of_blocks_equal_one_process():
    parts = [mixed_pairs(13, seed=3), mixed_pairs(3, seed=4)]
    expected, with_gradients = plain(join_pairs(parts))
    (first_total, first), (second_total, second) = run_on_ranks(cached_on_a_rank, 2, parts)
    assert abs(first_total + second_total - expected.total) < 1e-9
    query, target, negatives = (
        torch.cat(blocks)
        for blocks in zip(
            first.split([13, 13, parts[0].keys.num_negatives]),
            second.split([3, 3, parts[1].keys.num_negatives]),
            strict=True,
        )
    )
    gradient = torch.cat([query, target, negatives])
    assert torch.allclose(gradient, gradients(with_gradients), rtol=0, atol=1e-9)
