"""Several processes train, save and resume as one does, and only in the mode that was asked for."""

import shutil
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.core.distributed import run_on_ranks
from tests.core.training.interrupted import Killed, KilledAfter
from vipolyqwen_core.config import Distribution, ObjectiveSettings, TrainingRun
from vipolyqwen_core.objectives.pairs import TASKS, pair_keys, split_vectors
from vipolyqwen_core.objectives.routing import TermSums
from vipolyqwen_core.recipes import qwen2vl_2b_h100x4
from vipolyqwen_core.training.checkpoints import Progress
from vipolyqwen_core.training.distribution import start_accelerator
from vipolyqwen_core.training.engine import StepResult
from vipolyqwen_core.training.plan import TrainingPlan, plan_chunks, plan_training, read_plan_index
from vipolyqwen_core.training.ranks import rank
from vipolyqwen_core.training.result import read_result
from vipolyqwen_core.training.schedule import chunk_requests
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import Diverged, refuse_divergence, train


def take_fsdp2_for_possible() -> None:
    """accelerate shards on GPUs alone; this makes it take its own FSDP2 path on gloo. For tests only."""
    PartialState(cpu=True)
    if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train_in_parts(run: TrainingRun, *parts: int | None) -> list[str]:
    """Train on this rank again and again, each time up to a kill after some steps; None: to the end.

    Spawned ranks have the environment of the test.
    """
    if run.recipe.training.distribution is Distribution.FSDP2:
        take_fsdp2_for_possible()
    outcomes = []
    for steps in parts:
        try:
            train(run, StopSignal() if steps is None else KilledAfter(steps))
            outcomes.append("done")
        except Killed:
            outcomes.append("killed")
    return outcomes


def refused_fsdp2(run: TrainingRun) -> str:
    """What a rank says to FSDP2 without the above: accelerate silently gives data parallel."""
    try:
        start_accelerator(replace(run.recipe.training, distribution="fsdp2"))
    except ValueError as error:
        return str(error)
    return ""


def train_in_parts_and_ask_for_fsdp2(run: TrainingRun, *parts: int | None) -> tuple[list[str], str]:
    """Both of the above; to begin takes seconds."""
    return train_in_parts(run, *parts), refused_fsdp2(run)


def losses(run: TrainingRun) -> list[float]:
    return [line["loss"] for line in read_metrics(run.output / "metrics.jsonl")]


def batches(run: TrainingRun) -> list[str]:
    return [line["batch"] for line in read_metrics(run.output / "metrics.jsonl")]


def tokens_per_pair(run: TrainingRun) -> list[float]:
    """Of each line: both rates are of the same seconds."""
    lines = read_metrics(run.output / "metrics.jsonl")
    return [line["tokens_per_second"] / line["pairs_per_second"] for line in lines]


STEP: dict[str, Any] = {"negatives": "step", "chunk_pairs": 4}
DRIFT = 1e-4
"""Sums in another order differ by float32's rounding: over these six steps by a few 1e-7 of a loss."""


def test_two_ranks_train_four_continue_and_one_process_finishes(make_run):
    alone = make_run("alone", batches=STEP)
    train(alone, StopSignal())
    shared = make_run("shared", batches=STEP, training={"distribution": "data_parallel", "processes": 2})
    for outcomes, refusal in run_on_ranks(train_in_parts_and_ask_for_fsdp2, 2, shared, 3):
        assert outcomes == ["killed"]
        assert "2 processes with fsdp2, but 2 run with data_parallel: fsdp2 needs GPUs" in refusal
    assert run_on_ranks(train_in_parts, 4, shared, 3) == [["killed"]] * 4  # as two nodes: steps 3 to 5
    assert batches(shared) == batches(alone)[:5]
    assert tokens_per_pair(shared) == pytest.approx(tokens_per_pair(alone)[:5])
    train(make_run("shared", batches=STEP), StopSignal())
    assert batches(shared) == batches(alone)
    assert losses(shared) == pytest.approx(losses(alone), rel=DRIFT)


def train_at_once_and_in_parts(whole: TrainingRun, killed: TrainingRun) -> list[list[str]]:
    return [train_in_parts(whole, None), train_in_parts(killed, 3, None)]


def test_three_ranks_that_are_killed_continue_to_the_bit(make_run):
    settings = {"distribution": "data_parallel", "processes": 3}
    whole, killed = (make_run(name, training=settings) for name in ("whole", "killed"))
    outcomes = [["done"], ["killed", "done"]]
    assert run_on_ranks(train_at_once_and_in_parts, 3, whole, killed) == [outcomes] * 3
    assert losses(killed) == losses(whole)


def test_fsdp2_on_two_ranks_trains_saves_resumes_and_exports(make_run):
    """With a term of the pooling's weights, which is a second output of the sharded model."""
    of_both: dict[str, Any] = {"batches": STEP, "objective": {"pooling_entropy_weight": 0.5}}
    alone = make_run("alone", **of_both)
    train(alone, StopSignal())
    shared = make_run("shared", **of_both, training={"distribution": "fsdp2", "processes": 2})
    for outcomes in run_on_ranks(train_in_parts, 2, shared, 3, None):
        assert outcomes == ["killed", "done"]
    assert batches(shared) == batches(alone)
    assert losses(shared) == pytest.approx(losses(alone), rel=DRIFT)
    one, other = (load_file(run.output / "model" / "model.safetensors") for run in (shared, alone))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=3e-3)

    # a sharded checkpoint goes on in one process
    (shared.output / "result.json").unlink()
    shutil.rmtree(shared.output / "checkpoints" / "step_6")
    train(make_run("shared", **of_both), StopSignal())
    assert losses(shared) == pytest.approx(losses(alone), rel=DRIFT)


@pytest.mark.parametrize("negatives", ["chunk", pytest.param("step", marks=pytest.mark.slow)])
def test_fsdp2_in_bfloat16_trains_where_chunks_of_texts_alone_leave_the_vision_tower_out(make_run, negatives):
    batches = {"negatives": negatives, "chunk_pairs": 1}
    training = {"precision": "bfloat16", "epochs": 1}
    shared = make_run(
        "shared",
        batches=batches,
        training={**training, "distribution": "fsdp2", "processes": 2, "eval_steps": 2},
    )
    plan = plan_of(shared)
    assert not plan_chunks(plan.index, plan.rows(0), shared.recipe.batches, 2)[0].has_pictures
    chunks = list(chunk_requests(plan, shared.recipe, 0, rank=0, num_ranks=2))
    assert any(not one.needs_picture and other.needs_picture for one, other in pairwise(chunks))
    assert run_on_ranks(train_in_parts, 2, shared, None) == [["done"]] * 2
    if negatives == "step":  # the candidates of a chunk depend on the number of ranks
        alone = make_run("alone", batches=batches, training=training)
        train(alone, StopSignal())
        assert losses(shared) == pytest.approx(losses(alone), rel=0.02)


def plan_of(run: TrainingRun) -> TrainingPlan:
    index = read_plan_index(run.training_set / "index.parquet")
    return plan_training(index, run.recipe.batches, {}, 0, run.recipe.training.epochs)


def words_of_a_divergence(tasks: list[int]) -> str:
    """What a rank says where the run ends and one pair of its task had a loss of 3."""
    keys = pair_keys([TASKS[tasks[rank()]]], [1], [2])
    sums = torch.zeros(len(TASKS), 1).index_fill_(0, keys.task, 3.0)
    terms = TermSums(("info_nce",), sums, sums / 3)
    pairs = split_vectors(torch.ones(2, 1), keys)
    result = StepResult(torch.tensor(3.0), terms, float("nan"), refused=True, pairs=pairs)
    try:
        refuse_divergence(Progress(step=9, refused_in_a_row=10), result, ObjectiveSettings())
    except Diverged as error:
        return str(error)
    return ""


def test_the_losses_of_a_refused_step_are_those_of_all_ranks():
    for words in run_on_ranks(words_of_a_divergence, 2, [0, 2]):
        assert "the last is step 9 (losses: text_pair 3, ocr 3)" in words


def test_processes_that_are_not_those_of_the_settings_are_refused(make_run):
    for mode in ("fsdp2", "data_parallel"):
        with pytest.raises(ValueError, match=f"ask for 2 processes with {mode}, but 1 run with none"):
            prepare(make_run(training={"distribution": mode, "processes": 2}))
    with pytest.raises(ValueError, match="one process shares the model with no other"):
        prepare(make_run(training={"distribution": "fsdp2", "processes": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["fsdp2", "data_parallel"])
def test_compiled_layers_on_two_ranks_train_as_plain_ones_do(make_run, distribution):
    runs = [
        make_run(
            f"compiled-{compiled}",
            batches=STEP,
            training={
                "distribution": distribution,
                "processes": 2,
                "compile_layers": compiled,
                "activation_checkpointing": True,
            },
        )
        for compiled in (False, True)
    ]
    for run in runs:
        assert run_on_ranks(train_in_parts, 2, run, None) == [["done"], ["done"]]
    plain, compiled = (losses(run) for run in runs)
    assert compiled == pytest.approx(plain, rel=DRIFT)


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["chunk", "step"])
def test_the_recipe_for_gpus_trains_a_tiny_model_on_two_ranks(make_run, negatives):
    """Everything that decides how it trains is the recipe's own: bfloat16, FSDP2, compiled layers."""
    recipe = qwen2vl_2b_h100x4()
    sections = {
        name: vars(getattr(recipe, name)) for name in ("batches", "objective", "optimizer", "training")
    }
    sections["batches"] |= {"pairs_per_step": 16, "chunk_pairs": 4, "negatives": negatives}
    sections["training"] |= {
        "processes": 2,
        "loader_workers": 0,
        "epochs": 1,
        "save_steps": 2,
        "eval_steps": 2,
    }
    run = make_run(**{name: dict(values) for name, values in sections.items()})
    assert run_on_ranks(train_in_parts, 2, run, 2, None) == [["killed", "done"]] * 2
    assert [line["step"] for line in read_metrics(run.output / "metrics.jsonl") if "eval/loss" in line] == [
        2,
        3,
    ]
    assert read_result(run.output).refused_steps == 0
    assert (run.output / "model" / "model.safetensors").is_file()
