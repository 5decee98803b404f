"""What a rank asks of its loader, and what its engine knows of each step, follow from the plan."""

from dataclasses import replace

import numpy as np
import pytest

from tests.core.training.test_plan import make_index
from vipolyqwen_core.config import BatchSettings, Negatives, Recipe
from vipolyqwen_core.training import schedule
from vipolyqwen_core.training.optimizer import learning_rate
from vipolyqwen_core.training.plan import TrainingPlan, plan_chunks, plan_training
from vipolyqwen_core.training.schedule import chunk_requests, planned_steps, step_digest


def recipe_of(negatives: Negatives, chunk_pairs: int = 4) -> Recipe:
    """Steps of 20 pairs."""
    batches = BatchSettings(pairs_per_step=20, chunk_pairs=chunk_pairs, negatives=negatives)
    return Recipe(name="test", backbone="tiny", batches=batches)


def plan_of(recipe: Recipe, pictures: bool = True) -> TrainingPlan:
    """3 steps."""
    index = make_index(60)
    if not pictures:
        index = replace(index, patches=np.zeros(60, np.int32), images=np.zeros(60, np.int32))
    return plan_training(index, recipe.batches, {}, seed=0, epochs=1)


def test_several_ranks_run_the_vision_tower_in_the_first_chunk_of_all_and_the_last_of_each_step():
    recipe = recipe_of(Negatives.CHUNK)
    plan = plan_of(recipe, pictures=False)
    for rank in range(2):
        asked = [request.needs_picture for request in chunk_requests(plan, recipe, 1, rank, num_ranks=2)]
        assert asked == [True, False, True, False, False, True]
    assert not any(request.needs_picture for request in chunk_requests(plan, recipe, 1, 0, num_ranks=1))


def test_a_resumed_schedule_is_the_rest_of_the_whole():
    recipe = recipe_of(Negatives.STEP)
    plan = plan_of(recipe)
    whole = list(planned_steps(plan, recipe, 0, num_ranks=2))
    assert list(planned_steps(plan, recipe, 1, num_ranks=2)) == whole[1:]
    assert [step.learning_rate for step in whole] == [learning_rate(k, 3, recipe.optimizer) for k in range(3)]
    assert len({step_digest(plan, step.number) for step in whole}) == 3


def test_the_rate_of_a_run_that_stops_earlier_comes_down_as_far():
    recipe = recipe_of(Negatives.CHUNK)
    plan = plan_training(make_index(60), recipe.batches, {}, seed=0, epochs=9, max_steps=5)
    rates = [step.learning_rate for step in planned_steps(plan, recipe, 0, num_ranks=1)]
    assert rates == [learning_rate(step, 5, recipe.optimizer) for step in range(5)]


@pytest.mark.parametrize("negatives", Negatives)
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_no_rank_holds_more_than_it_may_and_each_loads_the_others_again(monkeypatch, negatives, num_ranks):
    monkeypatch.setattr(schedule, "HELD_BYTES", 1_500_000)
    recipe = recipe_of(negatives)
    plan = plan_of(recipe)
    size = plan.index.tokens * schedule.BYTES_OF_TOKEN + plan.index.patches * schedule.BYTES_OF_PATCH
    for step in planned_steps(plan, recipe, 0, num_ranks):
        chunks = plan_chunks(plan.index, plan.rows(step.number), recipe.batches, num_ranks)
        for rank in range(num_ranks):
            requests = chunk_requests(plan, recipe, 0, rank, num_ranks)
            asked = [request.rows.tolist() for request in requests if request.step == step.number]
            once = [chunk.rows[rank].tolist() for chunk in chunks]
            assert asked == once + once[step.num_held :]
        if negatives is Negatives.CHUNK:
            assert step.num_held == step.num_chunks
            continue
        assert 0 < step.num_held < step.num_chunks
        held = [
            sum(size[chunk.rows[rank]].sum() for chunk in chunks[: step.num_held])
            for rank in range(num_ranks)
        ]
        assert max(held) <= schedule.HELD_BYTES


def test_a_step_of_one_chunk_is_loaded_once_however_large_it_is(monkeypatch):
    monkeypatch.setattr(schedule, "HELD_BYTES", 0)
    recipe = recipe_of(Negatives.STEP, chunk_pairs=20)
    plan = plan_of(recipe, pictures=False)
    assert [(step.num_chunks, step.num_held) for step in planned_steps(plan, recipe, 0, 1)] == [(1, 1)] * 3
    assert [request.step for request in chunk_requests(plan, recipe, 0, 0, num_ranks=1)] == [0, 1, 2]
