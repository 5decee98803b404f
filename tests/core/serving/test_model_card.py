"""What the model card says of an evaluation."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.core.small_evaluation import evaluation, pool
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.results import Evaluation, Verdict
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.model_card import ModelFacts, write_model_card

FACTS = ModelFacts("run", "demo", "org/backbone", "v")


def card(found: Evaluation | None, folder: Path, facts: ModelFacts = FACTS, **config: object) -> str:
    """The card of a model directory with such an evaluation."""
    (folder / "config.json").write_text(json.dumps({"embedding_dim": 8, "pooling": "mean", **config}))
    processing = {"max_pixels": 1, "max_tokens": 1, "prompt": "content"}
    (folder / "preprocessor_config.json").write_text(json.dumps({"vipolyqwen": processing}))
    write_model_card(folder, facts, found)
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


def test_the_training_pairs_of_a_run_are_counted_by_task_and_by_source_with_its_license(
    tmp_path: Path,
) -> None:
    index = {"task": ["ocr", "ocr", "instr"], "source": ["shop", "shop", "letters"]}
    pq.write_table(pa.table(index), tmp_path / "index.parquet")
    run = TrainingRun(recipe=demo(), backbone=tmp_path, training_set=tmp_path, output=tmp_path)
    written = card(None, tmp_path, ModelFacts.of(run, {"shop": "CC-BY-4.0"}))
    assert "| task | training pairs |\n| --- | --- |\n| instr | 1 |\n| ocr | 2 |\n" in written
    assert "| source | training pairs | license |\n| --- | --- | --- |\n" in written
    assert "\n| letters | 1 | not stated |\n| shop | 2 | CC-BY-4.0 |\n" in written
    assert "| source | training pairs |\n" in card(None, tmp_path, ModelFacts.of(run))


def test_the_card_says_what_the_evaluation_holds_against_the_model_and_how_it_computes(
    tmp_path: Path,
) -> None:
    blamed = replace(evaluation(pool()), verdict=Verdict(False, ("ocr/vi: it looks at no picture",), ()))
    written = card(blamed, tmp_path, precision="bfloat16")
    assert "\n- ocr/vi: it looks at no picture\n" in written
    assert "saved, and computes, in bfloat16." in written
    assert "holds against it" not in card(evaluation(pool()), tmp_path)
    assert "This model has not been evaluated yet." in card(None, tmp_path)
