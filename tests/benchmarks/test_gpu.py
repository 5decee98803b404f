"""The GPU script measures what it says: shapes, mix, and rows that others survive. The smoke run is slow."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.benchmarks.gpu import __main__ as script
from tests.benchmarks.gpu import mix
from tests.benchmarks.gpu.checks import Check
from tests.benchmarks.gpu.mix import MIX, build_backbone, full_config, write_mix
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.scale import FULL, SMOKE
from tests.benchmarks.gpu.settings import Setting
from vipolyqwen_core.config import Negatives, ProcessingSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.objectives.pairs import TASKS
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.training.plan import read_plan_index

ROOT = Path(__file__).resolve().parents[2]


def test_the_shapes_are_those_of_the_2b_model(tiny_backbone):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(full_config(tiny_backbone))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_208_985_600


def test_the_shapes_are_those_of_the_published_configuration(tiny_backbone, shared_data):
    published = json.loads((shared_data / "qwen2_vl_2b_files" / "config.json").read_text())
    config = full_config(tiny_backbone)
    text, vision = config.text_config, config.vision_config
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "hidden_act",
    ):
        assert getattr(text, name) == published[name], name
    assert text.rope_parameters["mrope_section"] == published["rope_scaling"]["mrope_section"]
    assert text.rope_parameters["rope_theta"] == published["rope_theta"]
    for name in ("depth", "embed_dim", "mlp_ratio", "num_heads", "hidden_size", "patch_size"):
        assert getattr(vision, name) == published["vision_config"][name], name


def test_a_backbone_of_other_shapes_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setitem(mix.TEXT_2B, "num_hidden_layers", 1)
    monkeypatch.setitem(mix.TEXT_2B, "vocab_size", 8192)
    monkeypatch.setitem(mix.VISION_2B, "depth", 1)
    backbone = build_backbone(tmp_path / "backbone", True, torch.device("cpu"))
    model = ViPolyQwenModel.from_backbone(backbone, FULL.model, FULL.processing)
    assert model.projection.weight.shape == (1024, 1536)
    assert model.backbone.visual.blocks[0].attn.qkv.weight.shape == (3 * 1280, 1280)
    assert model.dtype == torch.float32


def test_the_mix_is_as_stated(tiny_backbone, tmp_path):
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, ProcessingSettings())
    index = read_plan_index(write_mix(tmp_path / "set", processor, MIX, 60) / "index.parquet")
    for kind in MIX:
        of_kind = index.tasks == TASKS.index(kind.task)
        assert of_kind.sum() == round(60 * kind.share)
        if kind.visual_tokens is None:
            assert not index.patches[of_kind].any()
        else:
            visual = index.patches[of_kind] / 4
            assert visual.min() >= 0.85 * kind.visual_tokens[0]
            assert visual.max() <= kind.visual_tokens[1]


def test_pairs_have_about_as_many_tokens_as_stated(tmp_path):
    backbone = build_backbone(tmp_path / "backbone", False, torch.device("cpu"))
    processor = ViPolyQwenProcessor.from_backbone(backbone, ProcessingSettings())
    index = read_plan_index(write_mix(tmp_path / "set", processor, MIX[:2], 100) / "index.parquet")
    for kind in MIX[:2]:
        tokens = index.tokens[index.tasks == TASKS.index(kind.task)].mean()
        assert tokens == pytest.approx(sum(kind.query_tokens + kind.target_tokens) / 2, rel=0.2)


def test_a_setting_that_does_not_fit_is_tried_smaller_then_says_so(tmp_path, monkeypatch):
    tried = []

    def does_not_fit(_training, _run, _setting, budget, *_):
        tried.append(budget)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(script, "apply_setting", lambda *_: None)
    monkeypatch.setattr(script, "chunk_loader", lambda *_: None)
    monkeypatch.setattr(script, "fit_budget", lambda *_: ((100, 200), {}))
    monkeypatch.setattr(script, "measure_setting", does_not_fit)
    report = Report(tmp_path, 1000.0)
    training = type("Training", (), {"optimizer": torch.optim.SGD([torch.zeros(1)])})()
    setting = Setting(Negatives.STEP, checkpointing=False, compiled=False)
    script.measure_one(report, training, None, setting, None, SMOKE)  # type: ignore[arg-type]
    assert tried == [(100, 200), (75, 150), (50, 100)]
    assert report.rows == [("step negatives", {"outcome": "OOM"})]
    assert "| step negatives | OOM |" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_leaves_the_others_and_is_named(tmp_path):
    report = Report(tmp_path, 1000.0)
    with script.part(report, "first"):
        raise RuntimeError("broken kernel")
    report.row("chunk negatives", {"share_of_matmul_rate": 0.51, "pairs_per_second": 20.0})
    report.check(Check.at_least("cosine", float("nan"), 0.9))
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert "broken kernel" in content["failed"][0]
    assert not content["checks"][0]["passed"]
    assert content["verdicts"][0].startswith("50% of the measured matrix rate with chunk negatives: reached")
    assert content["verdicts"][1].endswith("not measured")
    assert "MISSED, 20.0" in content["verdicts"][2]


def test_the_arrow_file_reads_as_lance_does(tmp_path):
    path = Path(script.__file__).parent / "without_lance" / "lance.py"
    spec = importlib.util.spec_from_file_location("stand_in_for_lance", path)
    assert spec is not None
    assert spec.loader is not None
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    table = pa.table({"image_id": ["a", "b", "c"], "bytes": [b"1", b"2", b"3"]})
    stand_in.write_dataset(table.to_reader(), str(tmp_path / "x.lance"), table.schema, "create")
    dataset = stand_in.dataset(str(tmp_path / "x.lance"), 1)
    assert dataset.count_rows() == 3
    assert dataset.take(np.array([2, 0]).tolist(), ["bytes"])["bytes"].to_pylist() == [b"3", b"1"]
    assert dataset.to_table(["image_id"]).column_names == ["image_id"]
    with pytest.raises(ValueError, match="not 7"):
        stand_in.dataset(str(tmp_path / "x.lance"), 7)


@pytest.mark.slow
def test_the_smoke_run_measures_every_way(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--smoke", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert len(content["rows"]) == 10
    for row in content["rows"]:
        assert row["pairs_per_second"] > 0, row
        assert row.get("refused_steps", 0) == 0, row
    assert all(check["passed"] for check in content["checks"])
    assert all("not measured" not in verdict for verdict in content["verdicts"])
