"""A dry run tells what a training then does, and writes nothing."""

import itertools
import json
import re
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.core.training.test_plan import make_index
from vipolyqwen_core.__main__ import app
from vipolyqwen_core.config import BatchSettings, to_json
from vipolyqwen_core.model import backbone
from vipolyqwen_core.training import checkpoints, dry_run, identity
from vipolyqwen_core.training.__main__ import main
from vipolyqwen_core.training.dry_run import describe
from vipolyqwen_core.training.plan import plan_training
from vipolyqwen_core.training.quick_evaluation import QuickEvaluation
from vipolyqwen_core.training.run_file import RUN_FILE, read_run
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.train import chunk_stream, train


def test_a_dry_run_of_a_recipe_leaves_the_file_that_several_machines_are_started_on(make_run, monkeypatch):
    run = make_run()
    monkeypatch.setattr(identity, "identified_run", lambda *_: run)
    monkeypatch.setattr(backbone, "resolve_backbone", lambda *_: run.backbone)
    done = CliRunner().invoke(app, ["train", "--recipe", "demo", "--dry-run"])
    assert f"The run's settings: {run.output / RUN_FILE}" in done.output
    assert read_run(run.output / RUN_FILE) == run


def test_a_dry_run_prints_the_plan_and_writes_nothing(make_run, tmp_path, capsys):
    run = make_run()
    config = tmp_path / "config.json"
    config.write_text(to_json(run), encoding="utf-8")
    assert main(["--config", str(config), "--dry-run", "--pairs-per-second", "10"]) == 0
    printed = capsys.readouterr().out
    assert "6 of 16.0 pairs on average" in printed
    assert "2.0 a step on each process" in printed
    assert "padding                     none" in printed
    assert "0.0 hours" in printed
    assert not run.output.exists()
    command = ["train", "--config", str(config), "--dry-run", "--pairs-per-second", "10"]
    done = CliRunner().invoke(app, command)
    assert done.output == printed
    assert not run.output.exists()


def test_a_run_of_other_data_is_not_planned(make_run):
    with pytest.raises(ValueError, match="is one of version older of the training set"):
        describe(replace(make_run(), tags={"data_version": "older"}))


def test_a_backbone_that_training_refuses_is_not_planned(make_run, tmp_path):
    run = make_run()
    copy = shutil.copytree(run.backbone, tmp_path / "copy")
    config = copy / "config.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    known["text_config"] = {**known["text_config"], **sliding, "layer_types": None}
    for changed, said in ((known, "its sliding window"), ({"model_type": "qwen2"}, "is a 'qwen2'")):
        config.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            describe(replace(run, backbone=copy))


@pytest.mark.parametrize("max_steps", [None, 2, 4])
def test_a_dry_run_counts_what_the_run_then_does(make_run, max_steps):
    run = make_run(training={"max_steps": max_steps})
    told = dict(re.findall(r"^ *(.+?)  +([\d,.e+]+)", describe(run), re.MULTILINE))
    pairs = int(told["uses in all steps"])
    training = prepare(run)
    counter = replace(training.counter, token_attention=0, patch_attention=0)
    chunks = list(chunk_stream(training, 0))
    assert pairs == sum(chunk.keys.num_pairs for chunk in chunks)
    assert float(told["tokens in all"]) == pytest.approx(sum(c.packed.num_tokens for c in chunks), rel=5e-2)
    operations = re.search(r"a pair, (.+?) in all", describe(run))
    expected = sum(counter.count(chunk.packed) for chunk in chunks)
    assert float(operations[1]) == pytest.approx(expected, rel=2e-2)


def test_the_memory_of_a_dry_run_does_not_grow_with_epochs():
    index = make_index(50_000)
    peaks = []
    for epochs in (4, 40):
        plan = plan_training(index, BatchSettings(), {"source1": 1.5}, 0, epochs)
        tracemalloc.start()
        uses = dry_run._uses(plan)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert np.array_equal(
            uses, np.bincount(np.concatenate([rows for _, _, rows in plan.steps()]), minlength=len(index))
        )
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("distribution", "words"), [("fsdp2", "wait for the last chunk"), ("data_parallel", "buckets in which")]
)
def test_a_dry_run_counts_the_gradients_that_several_processes_hold_besides(make_run, distribution, words):
    run = make_run(batches={"chunk_pairs": 4}, training={"distribution": distribution, "processes": 2})
    told = describe(run)
    parameters = int(re.search(r"parameters +([\d,]+)", told)[1].replace(",", ""))
    assert re.search(f"; {parameters * 4 / 1e9:.2f} GB of .*{words}", told)


def test_the_largest_pair_counts_for_the_memory_whichever_steps_are_looked_at(make_run, monkeypatch):
    """Alone in a chunk it may be beyond the budget, and of thousands of steps some hundred are looked at."""
    seen = []
    monkeypatch.setattr(dry_run, "_model_lines", lambda *told: seen.append(told[-1]) or iter(()))
    run = make_run(batches={"chunk_tokens": 1})
    for step in range(prepare(run).plan.num_steps):
        monkeypatch.setattr(dry_run, "_sample", lambda plan, step=step: [step])
        describe(run)
    assert len({(figures.largest_tokens, figures.largest_patches) for figures in seen}) == 1
    assert len({figures.tokens for figures in seen}) > 1


def test_a_dry_run_reckons_with_the_processes_of_several_machines(make_run):
    run = make_run(batches={"chunk_pairs": 4}, training={"distribution": "fsdp2", "processes": 2})
    one, two = describe(run), describe(run, machines=2)
    assert "2.0 a step on each process" in one
    assert "1.0 a step on each process" in two
    state = [float(re.search(r"([\d.]+) GB of weights", told)[1]) for told in (one, two)]
    assert state[0] == pytest.approx(2 * state[1], abs=0.011)
    assert "4, 2 on a machine" in two


@pytest.mark.parametrize("eval_steps", [None, 1])
def test_a_dry_run_tells_what_checkpoints_take_on_the_disk(make_run, eval_steps, monkeypatch):
    run = make_run(training={"save_steps": 1, "keep_checkpoints": 1, "eval_steps": eval_steps})
    told = describe(run)
    sizes, write, worse = [], checkpoints._write_state, itertools.count(1.0)

    def seen(folder, *facts):
        there = folder.parent.iterdir()
        sizes.append([sum(file.stat().st_size for file in each.iterdir()) for each in there])
        write(folder, *facts)

    monkeypatch.setattr(checkpoints, "_write_state", seen)
    monkeypatch.setattr(QuickEvaluation, "metrics", lambda _: {"eval/loss": next(worse)})  # the first is best
    train(run, StopSignal())
    assert f"; {max(map(len, sizes))} at most on the disk" in told
    parameters = int(re.search(r"parameters +([\d,]+)", told)[1].replace(",", ""))
    assert sizes[0][0] == pytest.approx(parameters * dry_run.CHECKPOINT_BYTES, rel=0.2)
    assert f"checkpoints                 {parameters * dry_run.CHECKPOINT_BYTES / 1e9:.2f} GB each" in told


def test_a_dry_run_tells_the_host_memory_that_reading_the_weights_takes(make_run):
    run = make_run(training={"distribution": "fsdp2", "processes": 2})
    told = describe(run, machines=3)
    parameters = int(re.search(r"parameters +([\d,]+)", told)[1].replace(",", ""))
    assert f"host memory of a machine    {2 * 4 * parameters / 1e9:.2f} GB" in told


def test_the_plan_of_a_dry_run_under_a_launcher_is_printed_once(make_run, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.json"
    config.write_text(to_json(make_run()), encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    assert main(["--config", str(config), "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", ["--machines", "--pairs-per-second"])
def test_a_dry_run_refuses_numbers_that_make_no_sense(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "run.json", "--dry-run", option, "0"])
    assert "--machines and --pairs-per-second must be above 0" in capsys.readouterr().err
