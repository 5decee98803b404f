"""What a run reports reads as one run, whatever happened to it."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.core.distributed import run_on_ranks
from tests.mlflow_store import mlflow_store
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.pairs import TASKS, PairVectors, pair_keys
from vipolyqwen_core.objectives.routing import TermSums, compute_losses
from vipolyqwen_core.training import tracking as tracking_module
from vipolyqwen_core.training.engine import PlannedStep
from vipolyqwen_core.training.flops import FlopCounter, peak_flops
from vipolyqwen_core.training.loading import LoadedChunk
from vipolyqwen_core.training.meter import Meter, Throughput
from vipolyqwen_core.training.optimizer import build_optimizer
from vipolyqwen_core.training.tracking import (
    MetricsFile,
    Tracking,
    loss_metrics,
    read_metrics,
    tracking,
)
from vipolyqwen_core.workspace import current_workspace


def test_losses_are_named_by_task_and_term():
    sums = torch.zeros(len(TASKS), 2)
    counts = torch.zeros(len(TASKS), 2)
    ocr = TASKS.index(Task.OCR)
    sums[ocr] = torch.tensor([6.0, 1.0])
    counts[ocr] = torch.tensor([2.0, 4.0])
    terms = TermSums(("info_nce", "triplet_margin"), sums, counts)
    assert loss_metrics(1.5, terms) == {
        "loss": 1.5,
        "loss/ocr": 3.25,
        "loss/ocr/info_nce": 3.0,
        "loss/ocr/triplet_margin": 0.25,
    }


def test_the_loss_of_a_task_is_the_mean_over_the_slices_as_the_loss_is():
    generator = torch.Generator().manual_seed(0)
    query, target = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=generator), dim=-1)
    pairs = PairVectors(query, target, target[:0], pair_keys([Task.OCR] * 4, range(1, 5), range(5, 9)))
    losses = compute_losses(pairs, pairs, ObjectiveSettings(), num_step_pairs=4, matryoshka_dims=(4, 2))
    metrics = loss_metrics(float(losses.total), losses.terms)
    assert metrics["loss/ocr"] == pytest.approx(metrics["loss"])


def test_a_resumed_metrics_file_forgets_what_was_not_saved(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, {"loss": step / 3})
    with file.path.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "lo')  # killed while writing
    file.resume(2)
    file.append(3, {"loss": 1 / 7})
    assert read_metrics(file.path) == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 1 / 7},
    ]


@pytest.mark.parametrize("damage", [b'{"step": 2, "lo', b"\0\0\0", b"\xff", b"3", b'{"loss": 1.0}'])
def test_a_damaged_line_of_metrics_is_named(tmp_path, damage):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"loss": 1.0})
    with file.path.open("ab") as stream:
        stream.write(damage + b"\n")
    file.append(3, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is .*remove"):
        file.resume(3)


class Pipes:
    """Records what Dagster would be told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.log = self

    def info(self, line: str) -> None:
        self.lines.append(line)

    def report_custom_message(self, message: dict[str, Any]) -> None:
        self.messages.append(json.loads(json.dumps(message)))


def test_a_training_alone_makes_the_store_of_its_workspace_and_names_the_place_of_artifacts(
    make_run, monkeypatch
):
    given, workspace = [], current_workspace()
    monkeypatch.setattr(tracking_module, "make_mlflow_database", given.append)
    monkeypatch.setattr(
        tracking_module, "mlflow_run", lambda _, artifacts, __: given.append(artifacts) or nullcontext()
    )
    own = mlflow_store(f"sqlite:///{workspace.mlflow_database}")
    with own, tracking(make_run(), num_steps=3, first_step=0):
        assert given == [workspace.mlflow_database, workspace.mlflow_artifacts.as_uri()]


def test_dagster_is_told_the_progress_and_the_time_left():
    pipes = Pipes()
    tracking = Tracking(num_steps=10, first_step=4, pipes=pipes)  # type: ignore[arg-type]
    tracking.metrics(10, {"loss": 0.5, "pairs_per_second": 20.0}, batch="ab")
    assert pipes.lines == ["step 10/10, loss 0.5000, 20.0 pairs/s, 0.0 minutes left"]
    assert pipes.messages == [
        {"kind": "training_progress", "step": 10, "seconds_left": 0.0, "loss": 0.5, "pairs_per_second": 20.0}
    ]


def test_the_time_left_is_told_from_the_steps_since_the_start(monkeypatch: pytest.MonkeyPatch):
    """A resumed run has not done those before."""
    now = 1000.0
    monkeypatch.setattr(tracking_module.time, "monotonic", lambda: now)
    pipes = Pipes()
    tracking = Tracking(num_steps=100, first_step=80, pipes=pipes)  # type: ignore[arg-type]
    now += 60.0
    tracking.metrics(90, {"loss": 0.5, "pairs_per_second": 20.0}, batch="ab")
    assert pipes.messages[0]["seconds_left"] == pytest.approx(60.0)


def test_rates_are_of_the_counts_and_mfu_needs_a_known_peak():
    throughput = Throughput(pairs=10, tokens=100, filler_tokens=5, truncated_tokens=25, flops=1e12)
    throughput.waiting_seconds, throughput.loading_seconds = 2.0, 6.0
    metrics = throughput.metrics(num_ranks=2, peak_flops=1e15)
    assert metrics["tokens_per_second"] == pytest.approx(10 * metrics["pairs_per_second"])
    assert metrics["useful_token_share"] == 0.95
    assert metrics["truncated_token_share"] == 0.2
    assert metrics["mfu"] == pytest.approx(metrics["tokens_per_second"] * 1e10 / (2 * 1e15))
    assert metrics["loading_share"] == pytest.approx(3 * metrics["waiting_share"])
    assert metrics["waiting_share"] == pytest.approx(metrics["pairs_per_second"] * 2.0 / 10)
    assert "mfu" not in throughput.metrics(2, None)
    assert peak_flops(torch.device("cpu")) is None


def seen_by_all_ranks() -> Throughput:
    """What this rank reports where rank 0 has most tokens and rank 1 waits longest."""
    own = [
        Throughput(0.0, 10, 2**24, 4, 5, flops=1e12, waiting_seconds=0.5),
        Throughput(0.0, 10, 1, 1, waiting_seconds=3.0, loading_seconds=0.25),
    ][dist.get_rank()]
    return own.of_all_ranks(torch.device("cpu"))


def test_tokens_count_on_all_ranks_and_times_where_they_are_longest():
    of_both = Throughput(0.0, 10, 2**24 + 1, 5, 5, 1e12, waiting_seconds=3.0, loading_seconds=0.25)
    assert run_on_ranks(seen_by_all_ranks, 2) == [of_both, of_both]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_device_by_its_name(name, teraflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == (None if teraflops is None else teraflops * 1e12)


def test_chunks_that_are_loaded_twice_count_once(tiny_model, packed_text):
    packed, keys = replace(packed_text, truncated_tokens=5), pair_keys([Task.INSTR], [1], [2])
    chunk = LoadedChunk(packed, keys, filler_tokens=3, seconds=0.5)
    meter = Meter(FlopCounter.of(tiny_model))
    for step in range(2):
        meter.begin(PlannedStep(step, 4, num_chunks=2, has_pictures=False, learning_rate=0.1, num_held=0))
        assert list(meter.watch(iter([chunk] * 4))) == [chunk] * 4
    seen = meter.throughput
    assert (seen.pairs, seen.tokens) == (8, 4 * packed.num_tokens)
    assert (seen.filler_tokens, seen.truncated_tokens) == (12, 20)
    assert seen.flops == pytest.approx(4 * meter.counter.count(packed))
    assert seen.loading_seconds == 8 * 0.5  # waiting is for every loading
    meter.restart()
    assert meter.throughput.pairs == 0


def test_the_optimizer_takes_its_settings_and_leaves_frozen_weights_out(make_run):
    changed = {"learning_rate": 0.25, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.5}
    model = torch.nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    decaying, constant = build_optimizer(model, make_run(optimizer=changed).recipe.optimizer).param_groups
    assert (decaying["lr"], decaying["betas"], decaying["weight_decay"]) == (0.25, (0.8, 0.9), 0.5)
    assert [id(parameter) for parameter in decaying["params"]] == [id(model.weight)]
    assert constant["params"] == []


def test_operations_are_two_a_weight_and_row_forward_and_twice_that_backward(tiny_model, packed_text):
    counter = FlopCounter.of(tiny_model)
    linear = sum(
        module.weight.numel()
        for module in tiny_model.backbone.language_model.layers.modules()
        if isinstance(module, torch.nn.Linear)
    )
    tokens, items = packed_text.num_tokens, packed_text.num_items
    config = tiny_model.backbone.language_model.config
    width = config.num_hidden_layers * config.hidden_size
    attention = sum(n * n for n in packed_text.segments.lengths) * width / 2
    head = tiny_model.projection.weight.numel()
    assert counter.count(packed_text) == 6 * (linear * tokens + head * items) + 12 * attention


def test_norms_biases_and_the_pooling_context_do_not_decay(tiny_model, make_run):
    settings = make_run(optimizer={"weight_decay": 0.5}).recipe.optimizer
    optimizer = build_optimizer(tiny_model, settings)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(tiny_model.named_parameters())
    assert len(decay) == len(parameters)
    constant = {name for name, parameter in parameters.items() if decay[id(parameter)] == 0.0}
    assert constant == {
        name
        for name in parameters
        if name.endswith("bias") or "norm" in name or ".ln_q." in name or name == "pooling.context"
    }
