"""The step is the same on any number of ranks and in any chunks, in loss and in gradient (float64, 1e-9)."""

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

from tests.core.distributed import run_on_ranks
from tests.core.training.stand_in import step_of
from vipolyqwen_core.config import Negatives
from vipolyqwen_core.objectives import negatives

MIXED = list(range(15))
"""Three pairs of each task."""
ONE_WITH_PICTURE = [0, 1, 5, 6, 10, 11, 2]
"""Text pairs, instructions and a single OCR pair: one rank has a picture, and no task is on all ranks."""
FEW = [0, 3, 1]
"""Fewer pairs than four ranks."""
TEXT = [0, 5, 10, 1, 6]
SCENARIOS: dict[str, dict[str, Any]] = {
    "step": {"rows": MIXED, "negatives": Negatives.STEP, "chunk_pairs": 2},
    "step, one picture": {"rows": ONE_WITH_PICTURE, "negatives": Negatives.STEP, "chunk_pairs": 2},
    "step, few pairs": {"rows": FEW, "negatives": Negatives.STEP, "chunk_pairs": 1},
    "step, text alone": {"rows": TEXT, "negatives": Negatives.STEP, "chunk_pairs": 1},
    "chunk": {"rows": MIXED, "negatives": Negatives.CHUNK, "chunk_pairs": 2},
    "chunk, one picture": {"rows": ONE_WITH_PICTURE, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
    "chunk, few pairs": {"rows": FEW, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
    "chunk, text alone": {"rows": TEXT, "negatives": Negatives.CHUNK, "chunk_pairs": 1},
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


def test_negatives_of_a_chunk_are_fewer_than_those_of_the_step(data):
    chunk, step = (step_of(data, MIXED, kind, 2)[0] for kind in (Negatives.CHUNK, Negatives.STEP))
    assert chunk < step


def test_a_step_without_pictures_leaves_the_vision_tower_alone(data):
    _, weights = step_of(data, TEXT, Negatives.CHUNK, 2)
    _, others = step_of(data, MIXED, Negatives.CHUNK, 2)
    untouched = step_of(data, [0], Negatives.CHUNK, 2)[1]["visual.weight"]
    assert torch.equal(weights["visual.weight"], untouched)
    assert not torch.equal(others["visual.weight"], untouched)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_one_process(data, num_ranks):
    results = run_on_ranks(all_scenarios, num_ranks, data)
    for name, scenario in SCENARIOS.items():
        alone = step_of(data, **scenario, planned_ranks=num_ranks)
        for of_rank in results:
            assert_equal_steps(of_rank[name], alone)
        if scenario["negatives"] is Negatives.STEP:
            assert_equal_steps(results[0][name], step_of(data, **scenario))
