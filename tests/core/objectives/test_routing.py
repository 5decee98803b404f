"""Routing and the step's loss: equal to the plain reference, additive over chunks, reported by task."""

import math

import pytest
import torch

from tests.core.objectives import reference
from tests.core.objectives.examples import gradients, leaves, mixed_pairs, unit_rows, with_concentration
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.pairs import TASKS, PairVectors, join_pairs, pair_keys, split_vectors
from vipolyqwen_core.objectives.routing import TERMS, Losses, compute_losses

DEFAULT = ObjectiveSettings()
WEIGHTED = ObjectiveSettings(
    temperature=0.2,
    margin=0.5,
    positive_score=0.75,
    term_weights={"info_nce": 0.5, "score_mse": 3.0},
    task_weights={Task.OCR: 2.0, Task.INSTR: 0.0},
)


def whole(pairs, settings=DEFAULT, **options):
    return compute_losses(pairs, pairs, settings, num_step_pairs=pairs.num_pairs, **options)


def counts(losses: Losses) -> dict[tuple[Task, str], int]:
    """Pairs that each term of a task applies to."""
    return {
        (task, name): int(number)
        for task, of_task in zip(TASKS, losses.terms.counts.tolist(), strict=True)
        for name, number in zip(losses.terms.names, of_task, strict=True)
    }


def simple_pairs(tasks, scores=None, dim=6, seed=0, negative_hashes=None):
    """Pairs without equal contents."""
    generator = torch.Generator().manual_seed(seed)
    number = len(tasks)
    keys = pair_keys(
        tasks,
        range(1, number + 1),
        range(101, number + 101),
        scores=scores,
        negative_hashes=negative_hashes,
    )
    rows = unit_rows(2 * number + keys.num_negatives, dim, generator)
    return split_vectors(rows, keys)


@pytest.mark.parametrize("cross_task", [False, True])
@pytest.mark.parametrize("settings", [DEFAULT, WEIGHTED], ids=["default", "weighted"])
@pytest.mark.parametrize("seed", range(5))
def test_the_total_equals_the_plain_reference(seed, settings, cross_task):
    settings = ObjectiveSettings(**{**vars(settings), "cross_task_negatives": cross_task})
    pairs = mixed_pairs(30, seed=seed)
    plain = reference.plain_pairs(pairs)
    expected = reference.total(plain, plain, settings, num_step_pairs=768)
    total = compute_losses(pairs, pairs, settings, num_step_pairs=768).total
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [(), (3,), (5, 2)])
def test_slices_and_uniformity_equal_the_plain_reference(dims):
    settings = ObjectiveSettings(**{**vars(WEIGHTED), "uniformity_weight": 0.3})
    pairs = mixed_pairs(30, seed=6)
    plain = reference.plain_pairs(pairs)
    assert max(len(pair.negatives) for pair in plain) > 1, "several hard negatives of a pair"
    expected = reference.total(plain, plain, settings, 768, dims)
    total = compute_losses(pairs, pairs, settings, num_step_pairs=768, matryoshka_dims=dims).total
    assert total.item() == pytest.approx(expected, rel=1e-11)


def test_every_term_is_reported_by_task_with_its_count():
    pairs = mixed_pairs(30, seed=7)
    plain = reference.plain_pairs(pairs)
    collected: dict[tuple[Task, str], list[float]] = {}
    for anchor in plain:
        for term, value in reference.terms_of(anchor, plain, DEFAULT).items():
            collected.setdefault((anchor.task, term), []).append(value)
    losses = whole(pairs)
    means = {key: sum(values) / len(values) for key, values in collected.items()}
    assert losses.terms.means() == pytest.approx(means, rel=1e-12)
    numbers = {key: number for key, number in counts(losses).items() if number}
    assert numbers == {key: len(values) for key, values in collected.items()}


def test_each_task_has_the_terms_of_the_design():
    assert {task: set(terms) for task, terms in TERMS.items()} == {
        task: set(terms) for task, terms in reference.TERMS.items()
    }


@pytest.mark.parametrize("options", [{}, {"matryoshka_dims": (4, 2)}], ids=["plain", "matryoshka"])
def test_chunks_of_anchors_add_up_to_the_whole_in_loss_gradient_and_terms(options):
    settings = ObjectiveSettings(uniformity_weight=0.1)
    once, piecewise = leaves(mixed_pairs(25, seed=3)), leaves(mixed_pairs(25, seed=3))
    expected = whole(once, settings, **options)
    expected.total.backward()
    parts = [
        compute_losses(piecewise.slice(start, stop), piecewise, settings, num_step_pairs=25, **options)
        for start, stop in ((0, 4), (4, 5), (5, 25))
    ]
    sum(part.total for part in parts).backward()
    assert sum(part.total for part in parts).item() == pytest.approx(expected.total.item(), rel=1e-12)
    assert torch.allclose(gradients(piecewise), gradients(once), rtol=0, atol=1e-12)
    terms = parts[0].terms + parts[1].terms + parts[2].terms
    assert torch.allclose(terms.sums, expected.terms.sums)
    assert torch.equal(terms.counts, expected.terms.counts)
    assert not terms.sums.requires_grad, "it would keep the graph of each chunk to the end of the step"


def test_groups_of_candidates_join_with_their_hard_negatives():
    first, second = mixed_pairs(5, seed=1), mixed_pairs(7, seed=2)
    joined = join_pairs([first, second])
    assert joined.num_pairs == 12
    for original, part in ((first, joined.slice(0, 5)), (second, joined.slice(5, 12))):
        assert torch.equal(part.stacked(), original.stacked())
        for name, column in vars(original.keys).items():
            assert torch.equal(vars(part.keys)[name].nan_to_num(9), column.nan_to_num(9)), name


def test_a_slice_takes_the_hard_negatives_of_its_pairs_along():
    pairs = simple_pairs([Task.OCR] * 3, negative_hashes=[[201, 202], [203], [204]])
    for start, stop, hashes, owners in ((0, 1, [201, 202], [0, 0]), (1, 3, [203, 204], [0, 1])):
        part = pairs.slice(start, stop)
        assert part.keys.negative_hash.tolist() == hashes
        assert part.keys.negative_pair.tolist() == owners
        assert torch.equal(part.negatives, pairs.negatives[[h - 201 for h in hashes]])


def test_stacked_vectors_are_split_into_what_they_were():
    pairs = mixed_pairs(5, seed=1)
    apart = split_vectors(pairs.stacked(), pairs.keys)
    assert torch.equal(apart.query, pairs.query)
    assert torch.equal(apart.target, pairs.target)
    assert torch.equal(apart.negatives, pairs.negatives)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("scores", [0.5] * 3, r"'score', 3, 2"),
        ("positive_hashes", [7], r"'positive_hash', 1, 2"),
        ("negative_hashes", [[1]] * 3, r"\(3, 2\)"),
        ("negative_query_hashes", [[5], []], r"'negative_query_hash', 1, 0"),
        ("negative_positive_hashes", [[5], []], r"'negative_positive_hash', 1, 0"),
    ],
)
def test_keys_of_other_numbers_of_pairs_or_negatives_are_refused(column, values, said):
    with pytest.raises(AssertionError, match=said):
        pair_keys([Task.OCR] * 2, [1, 2], [11, 12], **{column: values})


def test_gradients_agree_with_finite_differences():
    pairs = mixed_pairs(12, dim=4, seed=11)
    settings = ObjectiveSettings(temperature=0.3, margin=0.9, uniformity_weight=0.2)

    def total(vectors):
        return whole(split_vectors(vectors, pairs.keys), settings, matryoshka_dims=(2,)).total

    assert torch.autograd.gradcheck(total, pairs.stacked().requires_grad_(), eps=1e-7, atol=1e-6)


def test_a_masked_duplicate_gets_no_gradient_as_a_negative():
    tasks = [Task.OCR] * 3
    rows = unit_rows(6, 5, torch.Generator().manual_seed(0))
    settings = ObjectiveSettings(margin=2.0)

    def gradient_of_target_1(target_hashes):
        candidates = leaves(split_vectors(rows, pair_keys(tasks, [1, 2, 3], target_hashes)))
        compute_losses(candidates.slice(0, 1), candidates, settings, num_step_pairs=1).total.backward()
        return candidates.target.grad[1], candidates.query.grad[1]

    assert all(gradient.abs().sum() > 0 for gradient in gradient_of_target_1([11, 12, 13]))
    assert all(not gradient.any() for gradient in gradient_of_target_1([11, 11, 13]))


def test_a_scored_pair_under_the_threshold_is_no_positive_but_stays_a_candidate():
    low = simple_pairs([Task.TEXT_PAIR] * 2, scores=[0.1, 0.9])
    losses = whole(low)
    assert counts(losses)[Task.TEXT_PAIR, "info_nce"] == 1
    assert counts(losses)[Task.TEXT_PAIR, "score_mse"] == 2

    anchors = leaves(low)
    only_info_nce = ObjectiveSettings(term_weights={"score_mse": 0.0})
    compute_losses(anchors.slice(0, 1), anchors, only_info_nce, num_step_pairs=2).total.backward()
    assert not gradients(anchors).any()  # as an anchor it says nothing

    anchors = leaves(low)
    compute_losses(anchors.slice(1, 2), anchors, only_info_nce, num_step_pairs=2).total.backward()
    assert anchors.target.grad[0].any()  # as a candidate it is pushed away
    assert anchors.query.grad[0].any()


def test_a_score_at_the_threshold_is_a_positive_in_the_precision_of_the_table():
    stored = torch.tensor(0.7, dtype=torch.float32).item()  # below 0.7 as a double
    pairs = simple_pairs([Task.TEXT_PAIR] * 2, scores=[stored, stored])
    losses = whole(pairs, ObjectiveSettings(positive_score=0.7))
    assert counts(losses)[Task.TEXT_PAIR, "info_nce"] == 2


def test_an_unscored_pair_is_a_positive_and_does_not_regress():
    losses = whole(simple_pairs([Task.TEXT_PAIR] * 3))
    assert counts(losses)[Task.TEXT_PAIR, "info_nce"] == 3
    assert (Task.TEXT_PAIR, "score_mse") not in losses.terms.means()


def test_every_hard_negative_of_a_pair_is_seen_by_the_anchors_of_its_task_alone():
    pairs = leaves(
        simple_pairs([Task.OCR, Task.OCR, Task.INSTR], negative_hashes=[[201, 202], [], [203]], seed=5)
    )
    compute_losses(pairs.slice(1, 2), pairs, DEFAULT, num_step_pairs=3).total.backward()
    assert pairs.negatives.grad.abs().sum(dim=1).gt(0).tolist() == [True, True, False]


def test_equal_similarities_give_the_log_of_the_number_of_candidates():
    tasks = [Task.INSTR] * 4 + [Task.OCR] * 3
    pairs = simple_pairs(tasks, negative_hashes=[[301], [302], [], [], [], [], []])
    zeros = PairVectors(
        *(torch.zeros_like(v) for v in (pairs.query, pairs.target, pairs.negatives)), pairs.keys
    )
    means = whole(zeros).terms.means()
    assert means[Task.INSTR, "info_nce"] == pytest.approx((math.log(4 + 2) + math.log(4)) / 2)
    assert means[Task.OCR, "info_nce"] == pytest.approx(math.log(3))
    assert means[Task.OCR, "triplet_margin"] == pytest.approx(DEFAULT.margin)
    assert means[Task.INSTR, "cosine"] == 1.0


def test_matryoshka_calls_the_losses_again_on_slices_and_takes_their_mean():
    pairs = mixed_pairs(20, seed=9)
    sliced = [
        PairVectors(
            *(
                torch.nn.functional.normalize(vectors[:, :dim], dim=1)
                for vectors in (pairs.query, pairs.target, pairs.negatives)
            ),
            pairs.keys,
        )
        for dim in (8, 4, 2)
    ]
    expected = sum(whole(part).total for part in sliced) / 3
    losses = whole(pairs, matryoshka_dims=(2, 4, 2))  # named twice, taken once
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
    at_four = losses.terms.means()[Task.OCR, "info_nce@4"]
    assert at_four == pytest.approx(whole(sliced[1]).terms.means()[Task.OCR, "info_nce"])


def test_uniformity_is_off_by_default_and_added_with_its_weight():
    pairs = simple_pairs([Task.INSTR] * 5)
    plain, with_it = whole(pairs), whole(pairs, ObjectiveSettings(uniformity_weight=0.5))
    assert "uniformity" not in plain.terms.names
    value = with_it.terms.means()[Task.INSTR, "uniformity"]
    assert with_it.total.item() == pytest.approx(plain.total.item() + 0.5 * value)


@pytest.mark.parametrize("dims", [(), (4, 2)])
def test_the_entropy_of_the_pooling_is_off_by_default_and_counts_once_for_each_pair(dims):
    pairs = with_concentration(mixed_pairs(20, seed=5))
    options = {"task_weights": {Task.OCR: 2.0}, "matryoshka_dims": dims}
    plain = whole(pairs, ObjectiveSettings(task_weights={Task.OCR: 3.0}), **options)
    settings = ObjectiveSettings(task_weights={Task.OCR: 3.0}, pooling_entropy_weight=0.5)
    with_it = whole(pairs, settings, **options)
    assert "pooling_entropy" not in plain.terms.names
    of_task = {task: pairs.concentration[pairs.keys.task == code] for code, task in enumerate(TASKS)}
    means = {task: values.mean().item() for task, values in of_task.items()}
    assert means == pytest.approx({task: with_it.terms.means()[task, "pooling_entropy"] for task in means})
    added = sum((6.0 if task is Task.OCR else 1.0) * float(each.sum()) for task, each in of_task.items())
    assert with_it.total.item() == pytest.approx(plain.total.item() + 0.5 * added / 20, rel=1e-12)


def test_pooling_of_hard_negatives_counts_for_nothing():
    pairs = mixed_pairs(6, seed=2)
    rows = len(pairs.stacked())
    assert pairs.keys.num_negatives
    of_sides = torch.arange(rows, dtype=torch.float64)
    found = split_vectors(pairs.stacked(), pairs.keys, of_sides)
    assert found.concentration.tolist() == [(query + query + 6) / 2 for query in range(6)]


def test_weights_of_the_moment_multiply_those_of_the_settings():
    pairs = mixed_pairs(20, seed=4)
    fixed = whole(pairs, ObjectiveSettings(task_weights={Task.OCR: 3.0}))
    momentary = whole(pairs, ObjectiveSettings(task_weights={Task.OCR: 2.0}), task_weights={Task.OCR: 1.5})
    assert momentary.total.item() == pytest.approx(fixed.total.item(), rel=1e-12)


def test_an_unknown_term_in_the_weights_is_refused_by_name():
    with pytest.raises(ValueError, match="info_nec"):
        ObjectiveSettings(term_weights={"info_nec": 1.0})


def test_no_pairs_at_all_give_a_zero_loss_with_gradients_for_the_candidates():
    pairs = leaves(mixed_pairs(6, seed=2))
    losses = compute_losses(pairs.slice(0, 0), pairs, DEFAULT, num_step_pairs=6)
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert not gradients(pairs).any()
    assert losses.terms.means() == {}


def test_the_loss_is_computed_in_float32_under_autocast():
    pairs = mixed_pairs(12, seed=6)
    single = PairVectors(
        *(vectors.float() for vectors in (pairs.query, pairs.target, pairs.negatives)), pairs.keys
    )
    expected = whole(single).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whole(single).total, expected)
