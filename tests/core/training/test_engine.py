"""The step is the same on any number of ranks and in any chunks, in loss and in gradient (float64, 1e-9)."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.core.distributed import run_on_ranks
from tests.core.training.stand_in import OBJECTIVE, StandIn, step_of
from vipolyqwen_core.config import Negatives, ObjectiveSettings, Term
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives import negatives
from vipolyqwen_core.objectives.pairs import TASKS, pair_keys
from vipolyqwen_core.processing.packing import PackedBatch, Segments
from vipolyqwen_core.training.engine import Engine, PlannedStep, StepResult
from vipolyqwen_core.training.loading import LoadedChunk

MIXED = list(range(15))
"""Three pairs of each task."""
ONE_WITH_PICTURE = [0, 1, 5, 6, 10, 11, 2]
"""Text pairs, instructions and a single OCR pair: one rank has a picture, and no task is on all ranks."""
FEW = [0, 3, 1]
"""Fewer pairs than four ranks."""
TEXT = [0, 5, 10, 1, 6]
ENTROPY = replace(OBJECTIVE, pooling_entropy_weight=0.7, task_weights={Task.OCR: 2.0})
SCENARIOS: dict[str, dict[str, Any]] = {
    "step": {"rows": MIXED, "negatives": Negatives.STEP, "chunk_pairs": 2},
    "step, one picture": {"rows": ONE_WITH_PICTURE, "negatives": Negatives.STEP, "chunk_pairs": 2},
    "step, few pairs": {"rows": FEW, "negatives": Negatives.STEP, "chunk_pairs": 1},
    "step, text alone": {"rows": TEXT, "negatives": Negatives.STEP, "chunk_pairs": 1},
    "chunk": {"rows": MIXED, "negatives": Negatives.CHUNK, "chunk_pairs": 2},
    "chunk, one picture": {"rows": ONE_WITH_PICTURE, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
    "chunk, few pairs": {"rows": FEW, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
    "chunk, text alone": {"rows": TEXT, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
    "step, entropy": {"rows": MIXED, "negatives": Negatives.STEP, "chunk_pairs": 2, "objective": ENTROPY},
    "step, entropy, few pairs": {
        "rows": FEW,
        "negatives": Negatives.STEP,
        "chunk_pairs": 1,
        "objective": ENTROPY,
    },
    "chunk, entropy, one picture": {
        "rows": ONE_WITH_PICTURE,
        "negatives": Negatives.CHUNK,
        "chunk_pairs": 1,
        "objective": ENTROPY,
    },
}


def all_scenarios(data: Any) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """Every scenario on this rank. In a chunk no rank asks the others how many pairs they have."""
    found = {}
    for name, scenario in SCENARIOS.items():
        planned = scenario["negatives"] is Negatives.CHUNK
        with mock.patch.object(negatives, "_gather_sizes", None) if planned else nullcontext():
            found[name] = step_of(data, **scenario)
    return found


def assert_equal_steps(one: Any, other: Any) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-9)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=1e-9)


@pytest.fixture
def data(training_set, tiny_backbone, tiny_processing):
    return training_set, tiny_backbone, tiny_processing


def test_cached_gradients_equal_plain_ones_whatever_the_chunks(data):
    plain = step_of(data, MIXED, Negatives.CHUNK, chunk_pairs=99)
    for chunk_pairs in (1, 4, 99):
        assert_equal_steps(step_of(data, MIXED, Negatives.STEP, chunk_pairs), plain)
    for num_held in (0, 2):
        assert_equal_steps(step_of(data, MIXED, Negatives.STEP, 4, num_held=num_held), plain)


def test_the_entropy_of_the_pooling_has_one_gradient_whatever_the_chunks_and_the_negatives(data):
    alone = replace(ENTROPY, term_weights=dict.fromkeys(Term, 0.0))
    loss, weights = plain = step_of(data, MIXED, Negatives.CHUNK, chunk_pairs=99, objective=alone)
    for kind, chunk_pairs in product(Negatives, (1, 4)):
        assert_equal_steps(step_of(data, MIXED, kind, chunk_pairs, objective=alone), plain)
    assert loss > 0
    assert not torch.equal(weights["tokens.weight"], StandIn().tokens.weight)
    both = step_of(data, MIXED, Negatives.STEP, 4, objective=ENTROPY)
    without = step_of(data, MIXED, Negatives.STEP, 4, objective=replace(ENTROPY, pooling_entropy_weight=0.0))
    assert both[0] == pytest.approx(without[0] + loss, abs=1e-12)


def test_negatives_of_a_chunk_are_fewer_than_those_of_the_step(data):
    chunk, step = (step_of(data, MIXED, kind, 2)[0] for kind in (Negatives.CHUNK, Negatives.STEP))
    assert chunk < step


def test_a_step_without_pictures_leaves_the_vision_tower_alone(data):
    _, weights = step_of(data, TEXT, Negatives.CHUNK, 2)
    _, others = step_of(data, MIXED, Negatives.CHUNK, 2)
    untouched = step_of(data, [0], Negatives.CHUNK, 2)[1]["visual.weight"]
    assert torch.equal(weights["visual.weight"], untouched)
    assert not torch.equal(others["visual.weight"], untouched)


class Recorded(nn.Module):
    """One vector a token; notes its mode and the seed of each pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(64, 6)
        self.passes: list[tuple[bool, int]] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.passes.append((self.training, torch.initial_seed()))
        return nn.functional.normalize(
            self.tokens(batch.input_ids[batch.segments.cu_seqlens[:-1].long()] % 64)
        )


def chunk_of(first: int, num_pairs: int = 2) -> LoadedChunk:
    """Pairs of a token a side, all different."""
    tokens = torch.arange(first, first + 2 * num_pairs)
    segments = Segments.of([1] * len(tokens))
    packed = PackedBatch(tokens, torch.zeros(4, 1, len(tokens), dtype=torch.int64), tokens, segments, None)
    queries = range(first, first + num_pairs)
    keys = pair_keys([Task.OCR] * num_pairs, queries, [100 + query for query in queries])
    return LoadedChunk(packed, keys, filler_tokens=0, seconds=0.0)


CHUNKS = [chunk_of(0), chunk_of(10), chunk_of(20)]


def engine_of(negatives: Negatives = Negatives.STEP, weight_decay: float = 0.0, **options: Any) -> Engine:
    accelerator, model = Accelerator(cpu=True), Recorded()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0, weight_decay=weight_decay)
    options = {"objective": ObjectiveSettings(), "max_grad_norm": 1e9, **options}
    return Engine(accelerator, model, optimizer, vision_parameters=[], negatives=negatives, **options)


def step(
    engine: Engine, number: int = 0, rate: float = 0.0, weights: Any = None, has_pictures: bool = True
) -> StepResult:
    planned = PlannedStep(number, 6, len(CHUNKS), has_pictures, learning_rate=rate, num_held=len(CHUNKS))
    return engine.step(planned, iter(CHUNKS), weights)


def test_both_passes_of_a_chunk_draw_the_same_numbers_and_no_other_chunk_or_step_does():
    engine = engine_of(seed=5)
    for number in (0, 1):
        step(engine, number)
    seeds = [seed for _, seed in engine.model.passes]
    assert seeds[:3] == seeds[3:6]
    assert seeds[6:9] == seeds[9:]
    assert len(set(seeds)) == 6
    other = engine_of(seed=6)
    step(other)
    assert not {seed for _, seed in other.model.passes} & set(seeds)


def test_a_step_trains_and_vectors_in_use_are_those_of_evaluation():
    engine = engine_of()
    engine.embed(CHUNKS[0])
    step(engine)
    engine.embed(CHUNKS[0])
    assert [training for training, _ in engine.model.passes] == [False, *[True] * 6, False]


@pytest.mark.parametrize("negatives", Negatives)
def test_a_step_goes_down_its_own_gradient_at_its_own_rate_and_no_further_than_the_norm(negatives):
    engine = engine_of(negatives, max_grad_norm=1e-3)
    before = engine.model.tokens.weight.detach().clone()
    norms = [step(engine, rate=0.0).grad_norm for _ in range(2)]
    assert torch.equal(engine.model.tokens.weight, before)
    assert norms[0] == pytest.approx(norms[1]), "the gradient of a step holds that of the one before"
    assert norms[0] > 1e-3
    step(engine, rate=0.5)
    assert (engine.model.tokens.weight - before).norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("has_pictures", [False, True])
def test_a_step_without_pictures_does_not_decay_the_vision_tower(has_pictures):
    engine = engine_of(weight_decay=0.1)
    engine.vision_parameters = [engine.model.tokens.weight]  # they stand for the tower
    before = engine.model.tokens.weight.detach().clone()
    step(engine, rate=1.0, has_pictures=has_pictures)
    assert torch.equal(engine.model.tokens.weight, before) != has_pictures


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(bad):
    engine = engine_of()
    before = engine.model.tokens.weight.detach().clone()
    with mock.patch.object(engine.accelerator, "clip_grad_norm_", return_value=torch.tensor(bad)):
        assert step(engine, rate=1.0).refused
    assert torch.equal(engine.model.tokens.weight, before)
    assert not step(engine, rate=1.0).refused


@pytest.mark.parametrize("negatives", Negatives)
def test_the_loss_of_a_step_is_that_of_all_its_chunks_with_weights_and_slices(negatives):
    engine = engine_of(negatives, matryoshka_dims=(3,))
    plain, doubled = step(engine), step(engine, weights={Task.OCR: 2.0})
    assert doubled.loss.item() == pytest.approx(2 * plain.loss.item())
    means = plain.terms.means()
    assert plain.terms.counts[TASKS.index(Task.OCR), plain.terms.names.index("info_nce")] == 6
    assert (Task.OCR, "info_nce@3") in means
    of_terms = sum(means.values()) / 2  # info_nce and triplet_margin, two slices
    assert plain.loss.item() == pytest.approx(of_terms, rel=1e-5)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_one_process(data, num_ranks):
    results = run_on_ranks(all_scenarios, num_ranks, data)
    for name, scenario in SCENARIOS.items():
        alone = step_of(data, **scenario, planned_ranks=num_ranks)
        for of_rank in results:
            assert_equal_steps(of_rank[name], alone)
        if scenario["negatives"] is Negatives.STEP:
            assert_equal_steps(results[0][name], step_of(data, **scenario))
