"""A run trains, exports, is reused, and resumes to the bit."""

import pytest

from vipolyqwen_core.config import to_json
from vipolyqwen_core.contract import MODEL_FILES
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.training.__main__ import main
from vipolyqwen_core.training.result import read_result
from vipolyqwen_core.training.stopping import StopSignal
from vipolyqwen_core.training.tracking import read_metrics
from vipolyqwen_core.training.train import train


def losses(run) -> list[dict[str, object]]:
    """The losses and the samples of each line of metrics."""
    lines = read_metrics(run.output / "metrics.jsonl")
    return [
        {
            key: value
            for key, value in line.items()
            if key.startswith("loss") or key in ("step", "batch", "grad_norm")
        }
        for line in lines
    ]


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


def test_a_dry_run_prints_the_plan_and_writes_nothing(make_run, tmp_path, capsys):
    run = make_run()
    config = tmp_path / "config.json"
    config.write_text(to_json(run), encoding="utf-8")
    assert main(["--config", str(config), "--dry-run", "--pairs-per-second", "10"]) == 0
    printed = capsys.readouterr().out
    assert "6 of 16.0 pairs on average" in printed
    assert "2.0 a step on each process" in printed
    assert not run.output.exists()
