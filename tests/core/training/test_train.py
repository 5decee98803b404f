"""A run trains, exports, is reused, and resumes to the bit."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.interrupted import Killed, KilledAfter
from vipolyqwen_core.config import Precision, TrainingRun, to_json
from vipolyqwen_core.contract import MODEL_FILES
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.objectives.routing import TERMS, compute_losses
from vipolyqwen_core.objectives.task_balance import TaskBalance
from vipolyqwen_core.training import schedule
from vipolyqwen_core.training import train as train_module
from vipolyqwen_core.training.__main__ import main
from vipolyqwen_core.training.engine import Engine
from vipolyqwen_core.training.export_model import _as_used
from vipolyqwen_core.training.identity import data_version
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest
from vipolyqwen_core.training.quick_evaluation import QuickEvaluation
from vipolyqwen_core.training.result import read_result
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import Diverged, train


def losses(run: TrainingRun) -> list[dict[str, object]]:
    """Losses, gradient norm and samples of each line of metrics."""
    kept = ("step", "batch", "grad_norm", "learning_rate")
    return [
        {key: value for key, value in line.items() if key.startswith("loss") or key in kept}
        for line in read_metrics(run.output / "metrics.jsonl")
    ]


def quick_evaluation(run: TrainingRun, engine: Engine) -> QuickEvaluation:
    return QuickEvaluation(run, engine, data_version(run.training_set))


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return load_file(run.output / "model" / "model.safetensors")


def test_the_backbone_is_exported_in_the_type_of_its_arithmetic_and_the_head_in_float32():
    fine = torch.full((2,), 1.001)
    trained = {"backbone.a": fine, "backbone.steps": torch.tensor([3]), "projection.weight": fine}
    half = _as_used(trained, Precision.BFLOAT16)
    assert [tensor.dtype for tensor in half.values()] == [torch.bfloat16, torch.int64, torch.float32]
    assert half["projection.weight"] is fine
    assert _as_used(trained, Precision.FLOAT32) == trained


def test_a_run_learns_and_exports_a_model(make_run):
    run = make_run(training={"epochs": 6})
    result = train(run, StopSignal())
    assert result.steps == 18
    assert result.pairs == 6 * 48
    lines = read_metrics(run.output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert read_result(run.output) == result
    assert {path.name for path in (run.output / "model").iterdir()} >= set(MODEL_FILES)
    model = ViPolyQwenModel.from_pretrained(run.output / "model")
    assert model.config.embedding_dim == 32


@pytest.mark.parametrize("negatives", ["chunk", "step"])
def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(make_run, negatives):
    changed = {
        "batches": {"negatives": negatives},
        "objective": {"dynamic_task_weights": negatives == "chunk"},
    }
    whole = make_run("whole", **changed)
    train(whole, StopSignal())
    killed = make_run("killed", **changed)
    for steps in (1, 3, 2, 1):  # saved are steps 2, 4 and 6: killed after 1, 3, 4, 5
        with pytest.raises(Killed):
            train(killed, KilledAfter(steps))
    train(killed, StopSignal())
    assert losses(killed) == losses(whole)
    assert all(torch.equal(tensor, weights(killed)[name]) for name, tensor in weights(whole).items())


def test_other_workers_and_other_intervals_continue_the_same_run(make_run):
    whole, killed = make_run("whole"), make_run("killed")
    train(whole, StopSignal())
    with pytest.raises(Killed):
        train(killed, KilledAfter(3))
    train(make_run("killed", training={"loader_workers": 1, "save_steps": 3}), StopSignal())
    assert losses(killed) == losses(whole)


def test_inputs_that_are_loaded_again_and_not_held_give_the_same_run(make_run, monkeypatch):
    changed = {
        "batches": {"negatives": "step", "chunk_pairs": 4},
        "training": {"max_steps": 2, "loader_workers": 1},
    }
    held = make_run("held", **changed)
    train(held, StopSignal())
    for name, held_bytes in (("some", 40_000), ("none", 0)):
        monkeypatch.setattr(schedule, "HELD_BYTES", held_bytes)
        again = make_run(name, **changed)
        train(again, StopSignal())
        assert losses(again) == losses(held)


def test_quick_evaluations_choose_the_checkpoint_that_is_exported(make_run):
    run = make_run(
        training={"epochs": 4, "eval_steps": 3, "keep_checkpoints": 1, "save_steps": 100},
        optimizer={"learning_rate": 0.3, "warmup_share": 0.0},
    )
    result = train(run, StopSignal())
    judged = {
        line["step"]: line["eval/loss"]
        for line in read_metrics(run.output / "metrics.jsonl")
        if "eval/loss" in line
    }
    assert list(judged) == [3, 6, 9, 12]
    assert result.exported_step == min(judged, key=judged.__getitem__)
    kept = {path.name for path in (run.output / "checkpoints").iterdir()}
    assert kept == {f"step_{result.exported_step}", "step_12"}
    engine = prepare(run).engine
    engine.accelerator.unwrap_model(engine.model).load_state_dict(weights(run))
    exported = quick_evaluation(run, engine).metrics()["eval/loss"]
    assert exported == pytest.approx(judged[result.exported_step], rel=1e-5)


def test_quick_evaluations_take_the_same_pairs_whatever_their_order(
    make_run, training_set, tmp_path, monkeypatch
):
    monkeypatch.setattr("vipolyqwen_core.training.quick_evaluation.MAX_PAIRS", 5)
    run = make_run()
    moved = replace(run, training_set=shutil.copytree(training_set, tmp_path / "moved"))
    table = pa.ipc.open_file(training_set / "eval.arrow").read_all()
    with pa.ipc.new_file(moved.training_set / "eval.arrow", table.schema) as writer:
        writer.write_table(table.take([*range(1, len(table)), 0]))
    engine = prepare(run).engine
    one, other = (quick_evaluation(each, engine) for each in (run, moved))
    assert len(one.rows) == 5
    assert set(one.index.keys[one.rows]) == set(other.index.keys[other.rows])


def test_a_quick_evaluation_is_the_loss_of_evaluation_pairs_whatever_is_built_meanwhile(
    make_run, training_set, tmp_path
):
    run = replace(
        make_run(model={"matryoshka_dims": (16,)}, batches={"prefix_dropout": 1.0}),
        training_set=shutil.copytree(training_set, tmp_path / "set"),
    )
    engine = prepare(run).engine
    loader = ChunkLoader(
        training_set, run.backbone, run.recipe.processing, prefix_dropout=0.0, seed=0, table="eval.arrow"
    )
    rows = np.arange(len(loader.rows))
    everything = loader[ChunkRequest(0, 0, rows, needs_picture=False)]
    with torch.no_grad():
        pairs = engine.embed(everything)
    expected = compute_losses(
        pairs, pairs, run.recipe.objective, num_step_pairs=len(rows), matryoshka_dims=(16,)
    )
    evaluation = quick_evaluation(run, engine)
    stage = read_stage(run.training_set)
    (run.training_set / "eval.arrow").unlink()
    replace(stage, data_version="data2").write(run.training_set)
    assert evaluation.metrics()["eval/loss"] == pytest.approx(float(expected.total), rel=1e-5)
    with pytest.raises(ValueError, match=r"eval\.arrow does not exist: build the training set first"):
        quick_evaluation(run, engine)


def test_a_set_that_is_built_anew_while_the_model_loads_is_not_trained_on(
    make_run, training_set, tmp_path, monkeypatch
):
    run = replace(make_run(), training_set=shutil.copytree(training_set, tmp_path / "set"))
    working = ViPolyQwenModel.from_backbone

    def late(*arguments):
        replace(read_stage(run.training_set), data_version="data2").write(run.training_set)
        return working(*arguments)

    monkeypatch.setattr(ViPolyQwenModel, "from_backbone", late)
    with pytest.raises(ValueError, match="was replaced while a run trained on it"):
        train(run, StopSignal())
    assert not list((run.output / "checkpoints").glob("step_*"))


def test_a_run_that_is_resumed_without_quick_evaluations_exports_its_last_step(make_run, monkeypatch):
    monkeypatch.setattr(QuickEvaluation, "metrics", lambda self: {"eval/loss": 1.0})  # the first is the best
    with pytest.raises(Killed):
        train(make_run(training={"max_steps": 3, "eval_steps": 1}), KilledAfter(3))
    assert train(make_run(training={"max_steps": 3}), StopSignal()).exported_step == 3


def test_an_evaluation_that_is_not_finite_is_never_the_best(make_run, monkeypatch):
    losses_in_turn = iter([float("nan"), 5.0, float("nan")])
    monkeypatch.setattr(QuickEvaluation, "metrics", lambda _: {"eval/loss": next(losses_in_turn)})
    assert train(make_run(training={"max_steps": 3, "eval_steps": 1}), StopSignal()).exported_step == 2


def running_losses(run: TrainingRun) -> dict[str, float]:
    """The state of the dynamic task weights after the first step."""
    state = json.loads((run.output / "checkpoints" / "step_1" / "state.json").read_text())
    return state["progress"]["running_losses"]


def test_options_do_not_weigh_tasks_against_each_other(make_run):
    """Uniformity falls below zero: the inverse of a loss with it would give one task all the weight."""
    running = []
    for name, weight in (("without", 0.0), ("with", 1e-9)):
        objective = {"dynamic_task_weights": True, "uniformity_weight": weight}
        objective["pooling_entropy_weight"] = weight
        run = make_run(name, objective=objective, model={"matryoshka_dims": (16,)}, training={"max_steps": 1})
        train(run, StopSignal())
        running.append(running_losses(run))
    assert running[1] == pytest.approx(running[0])


def test_the_entropy_of_the_pooling_is_reported_and_trained(make_run):
    """A new model pools evenly; the weights part less from that where the term counts."""
    found = []
    for weight in (1e-9, 10.0):
        objective = {"pooling_entropy_weight": weight}
        run = make_run(str(weight), objective=objective, training={"eval_steps": 6})
        train(run, StopSignal())
        found.append(read_metrics(run.output / "metrics.jsonl"))
    first, last = ([lines[step]["loss/ocr/pooling_entropy"] for lines in found] for step in (0, 5))
    assert first == pytest.approx([0.0, 0.0], abs=1e-6)
    assert 1e-6 < last[1] < last[0]
    assert found[0][-1]["eval/loss/ocr/pooling_entropy"] > 1e-6


def test_terms_weigh_in_a_tasks_running_loss_as_they_do_in_its_loss(make_run):
    term_weights = {"info_nce": 0.5, "score_mse": 3.0, "triplet_margin": 0.0}
    objective = {"dynamic_task_weights": True, "term_weights": term_weights}
    run = make_run(objective=objective, training={"max_steps": 1})
    train(run, StopSignal())
    (line,) = read_metrics(run.output / "metrics.jsonl")
    expected = {
        task.value: sum(
            term_weights.get(term, 1.0) * line[f"loss/{task.value}/{term}"] for term in TERMS[task]
        )
        for task in TERMS
    }
    assert running_losses(run) == pytest.approx(expected)


def test_steps_weigh_tasks_by_the_losses_of_those_before_that_were_not_refused(make_run, monkeypatch):
    given = []
    step = Engine.step

    def refusing_the_first(engine, planned, chunks, weights):
        given.append(weights)
        return replace(step(engine, planned, chunks, weights), refused=planned.number == 0)

    monkeypatch.setattr(Engine, "step", refusing_the_first)
    for dynamic in (True, False):
        run = make_run(
            str(dynamic),
            objective={"dynamic_task_weights": dynamic},
            training={"max_steps": 3, "log_steps": 1},
        )
        train(run, StopSignal())
        lines = read_metrics(run.output / "metrics.jsonl")
        losses_of_second = {
            task: sum(lines[1][f"loss/{task.value}/{term}"] for term in terms)
            for task, terms in TERMS.items()
        }
        expected = TaskBalance().updated(losses_of_second).weights() if dynamic else {}
        assert given == [{}, {}, pytest.approx(expected)]
        given.clear()


def test_what_the_recipe_says_of_a_step_reaches_the_engine(make_run):
    run = make_run(
        model={"matryoshka_dims": (16,)},
        batches={"negatives": "step"},
        objective={"temperature": 0.2},
        optimizer={"max_grad_norm": 0.5},
        training={
            "seed": 3, "precision": "bfloat16", "activation_checkpointing": True, "compile_layers": True,
        },
    )  # fmt: skip
    engine = prepare(run).engine
    assert (engine.matryoshka_dims, engine.max_grad_norm, engine.seed) == ((16,), 0.5, 3)
    assert (engine.negatives, engine.autocast) == ("step", torch.bfloat16)
    assert engine.objective == run.recipe.objective
    tower = engine.model.backbone.visual.parameters()
    assert [id(parameter) for parameter in engine.vision_parameters] == [id(one) for one in tower]
    other = prepare(make_run(training={"seed": 4})).engine
    assert not torch.equal(other.model.projection.weight, engine.model.projection.weight)
    for model, asked in ((engine.model, True), (other.model, False)):
        assert model.is_activation_checkpointing == asked
        assert any("forward" in vars(module) for module in model.modules()) == asked  # compiled


def test_a_refused_step_is_neither_judged_nor_takes_the_best_ones_place(make_run, monkeypatch):
    refused, losses_in_turn = {2, 3}, iter([1.0, 5.0, 4.0, 3.0])
    step = Engine.step

    def refusing(engine, planned, *others):
        result = step(engine, planned, *others)
        return replace(result, refused=planned.number + 1 in refused)

    monkeypatch.setattr(Engine, "step", refusing)
    monkeypatch.setattr(QuickEvaluation, "metrics", lambda _: {"eval/loss": next(losses_in_turn)})
    run = make_run(training={"eval_steps": 1, "save_steps": 2, "keep_checkpoints": 1})
    assert train(run, StopSignal()).exported_step == 1
    judged = [line["step"] for line in read_metrics(run.output / "metrics.jsonl") if "eval/loss" in line]
    assert judged == [1, 4, 5, 6]


def test_a_finished_run_is_reused_and_another_is_refused_its_folder(make_run, caplog):
    run = make_run(training={"max_steps": 1})
    result = train(run, StopSignal())
    written = (run.output / "result.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert train(make_run(training={"max_steps": 1, "log_steps": 5}), StopSignal()) == result
    assert "finished" in caplog.text
    assert (run.output / "result.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.001 there, 0.1 now"):
        train(make_run(training={"max_steps": 1}, optimizer={"learning_rate": 0.1}), StopSignal())
    (run.output / "model" / "config.json").unlink()  # somebody made room, and stopped half way
    with pytest.raises(ValueError, match="has finished, but its model/ is gone: bring it back"):
        read_result(run.output)


def test_a_run_that_is_named_after_other_data_does_not_train(make_run):
    with pytest.raises(ValueError, match="is one of version older of the training set"):
        train(replace(make_run(), tags={"data_version": "older"}), StopSignal())


def test_steps_that_are_not_finite_are_refused_counted_and_end_the_run(make_run, caplog):
    run = make_run(
        training={"epochs": 6, "save_steps": 1, "keep_checkpoints": 20},
        optimizer={"learning_rate": 1e38, "warmup_share": 0.0},
    )
    with pytest.raises(Diverged, match="10 steps in a row had a gradient that is not finite"):
        train(run, StopSignal())
    lines = read_metrics(run.output / "metrics.jsonl")
    assert lines[0]["refused_steps"] == 0
    assert [line["refused_steps"] for line in lines[1:]] == list(range(1, 11))
    assert "step 2 refused" in caplog.text
    assert (run.output / "checkpoints" / "step_1" / "state.json").is_file()


def test_refused_steps_with_good_ones_between_do_not_end_a_run(make_run, monkeypatch):
    step = Engine.step
    monkeypatch.setattr(train_module, "MAX_REFUSED_IN_A_ROW", 2)
    monkeypatch.setattr(
        Engine, "step", lambda *given: replace(step(*given), refused=given[1].number % 2 == 0)
    )
    assert train(make_run(), StopSignal()).refused_steps == 3


def test_a_failure_leaves_its_traceback_and_a_user_error_is_one_sentence(
    make_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(StopSignal, "listen", lambda self: None)  # the signals of this process stay its own
    run = make_run()
    config = tmp_path / "config.json"
    lost = replace(run, training_set=tmp_path / "nowhere")
    config.write_text(to_json(lost), encoding="utf-8")
    assert main(["--config", str(config)]) == 2
    assert "error: no plan index" in capsys.readouterr().err
    assert "ValueError: no plan index" in (run.output / "errors" / "rank0.txt").read_text()
    assert main(["--config", str(tmp_path / "absent.json")]) == 2


def test_a_weight_of_a_source_that_has_no_pair_is_told(make_run, caplog):
    prepare(replace(make_run(), source_weights={"shop": 2.0, "shpo": 3.0, "lost": 1.0}))
    assert "source weights without effect: {'shpo': 3.0}; the training set has pairs of shop" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_named_in_one_sentence(make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(StopSignal, "listen", lambda self: None)
    (tmp_path / "file").touch()
    config = tmp_path / "config.json"
    config.write_text(to_json(replace(make_run(), output=tmp_path / "file" / "run")), encoding="utf-8")
    assert main(["--config", str(config)]) == 2
    assert re.search(r"^error: .*Not a directory: .*file/run", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["chunk", "step"])
def test_five_sigkills_of_the_real_command_change_nothing(make_run, negatives, tmp_path):
    """At random moments of random steps, each time with another number of loader workers."""
    changed = {"batches": {"negatives": negatives}, "training": {"epochs": 4, "save_steps": 1}}
    whole = make_run("whole", **changed)
    (tmp_path / "whole.json").write_text(to_json(whole), encoding="utf-8")
    # by the same command: another number of threads sums in another order
    module = [sys.executable, "-m", "vipolyqwen_core.training", "--config"]
    subprocess.run([*module, str(tmp_path / "whole.json")], check=True)
    steps, chance = len(losses(whole)), random.Random(0)
    killed = make_run("killed", **changed)
    killed.output.mkdir()
    config = killed.output / "run.json"
    command = [*module, str(config)]
    for number, step in enumerate(sorted(chance.sample(range(1, steps), 5))):
        workers = {**changed, "training": {**changed["training"], "loader_workers": 2 * (number % 2)}}
        config.write_text(to_json(make_run("killed", **workers)), encoding="utf-8")
        with subprocess.Popen(command) as process:
            while len(read_metrics(killed.output / "metrics.jsonl")) < step and process.poll() is None:
                time.sleep(0.005)
            time.sleep(0.1 * chance.random())  # in the save, in the next step
            assert process.poll() is None
            process.kill()
    assert read_result(killed.output) is None
    subprocess.run(command, check=True)
    assert losses(killed) == losses(whole)
    assert all(torch.equal(tensor, weights(killed)[name]) for name, tensor in weights(whole).items())
