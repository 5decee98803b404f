"""What the model card says of an evaluation."""

import json
from dataclasses import replace
from pathlib import Path

from tests.core.small_evaluation import evaluation, pool
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.results import Evaluation
from vipolyqwen_core.serving.model_card import ModelFacts, write_model_card


def card(found: Evaluation, folder: Path) -> str:
    """The card of a model directory with such an evaluation."""
    (folder / "config.json").write_text(json.dumps({"embedding_dim": 8, "pooling": "mean"}))
    processing = {"max_pixels": 1, "max_tokens": 1, "prompt": "content"}
    (folder / "preprocessor_config.json").write_text(json.dumps({"vipolyqwen": processing}))
    write_model_card(folder, ModelFacts("run", "demo", "org/backbone", "v"), found)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_star_marks_pools_outside_the_mean(tmp_path: Path) -> None:
    written = card(evaluation(pool(), replace(pool(Task.INSTR), counts=False)), tmp_path)
    assert "| pool | pairs | mrr@10 | no prefix | untrained | BM25 | chance | recall@1 |" in written
    assert "| ocr/vi | 200 |" in written
    assert "| instr/vi * | 200 |" in written
    assert "\n| **mean** | | 0.600 | " in written
    assert "\n\n\\* outside the mean: too small to count, or a choice between two answers.\n\n" in written


def test_pools_that_are_all_too_small_are_told_as_such(tmp_path: Path) -> None:
    written = card(replace(evaluation(replace(pool(), is_large=False)), enough=False), tmp_path)
    assert "\n\nNo pool is large enough to count: the mean is over all of them.\n\n" in written
