"""What the data report draws."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

from quality import data_report
from quality.curate import curate
from quality.data_report import (
    SCORE_BINS,
    TEMPLATE,
    FunnelRow,
    failed_expectations,
    funnel,
    histograms,
    whole_ledger,
)
from tests.quality.conftest import everything, instruction
from vipolyqwen_core.config import CurationSettings


def rows_of(
    tasks: Sequence[str], pictures: Sequence[int], scores: Sequence[float | None] | None = None
) -> pl.LazyFrame:
    """Rows of a training set with so many pictures and such scores."""
    return pl.LazyFrame(
        {
            "task": tasks,
            "score": scores or [None] * len(tasks),
            "query_images": [["id"] * number for number in pictures],
            "target_images": [[]] * len(tasks),
            "query_tokens": [1] * len(tasks),
            "target_tokens": [1] * len(tasks),
        },
        schema_overrides={
            "score": pl.Float32,
            "query_images": pl.List(pl.String),
            "target_images": pl.List(pl.String),
        },
    )


def test_what_is_kept_is_a_share_of_all_that_was_read_records_without_a_pair_among_them() -> None:
    source = FunnelRow(
        "s", records=400, unread=100, read=300, curated=99, tagged=96, validated=96, train=90, eval=5
    )
    assert source.kept == 95 / 400
    assert FunnelRow("empty", 0, 0, 0, 0, 0, 0, 0, 0).kept == 0.0


def test_round_scores_stand_in_the_bin_that_they_begin() -> None:
    scores = [round(number / SCORE_BINS, 2) for number in range(SCORE_BINS)] + [1.0]
    rows = rows_of(["text_pair"] * len(scores), [0] * len(scores), scores)
    figure = dict(histograms(rows))["score of a scored pair"]
    (steps,) = figure.axes[0].patches
    assert steps.get_data().values.tolist() == [1] * (SCORE_BINS - 1) + [2]


def test_tasks_with_as_many_pictures_are_seen_beside_each_other() -> None:
    rows = rows_of(["ocr"] * 2 + ["vqa_single"] * 2 + ["vqa_multi"] * 3, [1, 1, 1, 1, 1, 2, 2])
    (axes,) = dict(histograms(rows))["pictures of a pair"].axes
    bars = sorted(
        (bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches if bar.get_height()
    )
    assert [height for _, _, height in bars] == [2, 2, 1, 2]  # ocr and the two kinds of vqa; vqa_multi
    assert all(x + width <= after + 1e-9 for (x, width, _), (after, *_) in pairwise(bars))
    assert [round(x + width / 2) for x, width, _ in bars] == [1, 1, 1, 2]


def test_no_legend_lies_over_what_is_drawn() -> None:
    for _, figure in histograms(rows_of(["ocr", "instr"], [1, 0])):
        assert figure.axes[0].get_legend() is None
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["instr", "ocr"]
        figure.draw_without_rendering()
        assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_tables_scroll_by_themselves_on_a_narrow_screen_and_are_whole_in_print() -> None:
    page = Path(data_report.__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    assert (
        page.count("<table") == page.count('<div class="scroll"><table') == page.count("</table></div>") > 0
    )
    assert ".scroll { overflow-x: auto" in page
    assert ".scroll { overflow: visible }" in page.partition("@media print {")[2]


def test_the_funnel_counts_what_each_stage_made_of_the_version_that_the_training_set_holds(
    workspace, write_source, build
) -> None:
    records = [*[instruction(number) for number in range(9)], "{", "[", {**instruction(9), "output": ""}]
    summary = build(write_source(records))
    curate(write_source([instruction(20)]), CurationSettings(), workspace)  # not validated yet
    rows = everything(workspace)
    train, evaluates = (rows.filter(split=split).height for split in ("train", "eval"))
    assert train > evaluates > 0
    (row,) = funnel(workspace, summary)
    assert row == FunnelRow(
        "corpus", records=12, unread=2, read=10, curated=9, tagged=9, validated=9, train=train, eval=evaluates
    )
    rules = set(whole_ledger(workspace, summary).collect()["rule"])
    assert rules == {"broken_json", "empty_target"}


def test_what_the_training_set_left_out_is_in_the_ledger_of_the_report(
    workspace, write_source, build
) -> None:
    records = [instruction(number) for number in range(4)]
    summary = build(write_source(records), write_source([*records[:1], instruction(9)], name="other"))
    left_out = whole_ledger(workspace, summary).collect().select("stage", "rule").rows()
    assert left_out == [("training_set", "exact_duplicate")]


def test_pairs_are_counted_over_all_that_a_row_of_a_table_stands_for() -> None:
    rows = pl.LazyFrame(
        {
            "source": ["a", "a", "b", "b"],
            "task": ["ocr"] * 4,
            "language": ["vi", "en", "vi", "vi"],
            "split": ["train", "train", "train", "eval"],
        }
    )
    (by_task,) = data_report._pivot(data_report._counts(rows), ["task"], ["ocr"])
    assert by_task["names"] == ("ocr",)
    assert by_task["cells"] == {
        ("vi", "train"): 2, ("vi", "eval"): 1, ("en", "train"): 1, ("all", "train"): 3, ("all", "eval"): 1,
    }  # fmt: skip


def test_a_rule_is_counted_over_all_sources_and_in_each() -> None:
    ledger = pl.LazyFrame(
        {"stage": ["read"] * 3, "rule": ["empty_file"] * 3, "source": ["a", "b", "b"], "reason": ["why"] * 3}
    )
    (found,) = data_report._rejects(ledger)
    assert (found["rows"], found["sentence"]) == (3, "The file holds no records.")
    assert found["sources"] == [{"source": "b", "rows": 2}, {"source": "a", "rows": 1}]


def test_expectations_that_were_not_met_are_named_with_their_source(workspace, monkeypatch) -> None:
    lines = [{"expectation": name, "success": name == "met"} for name in ("met", "not met")]
    stage = SimpleNamespace(details={"expectations": lines})
    monkeypatch.setattr(data_report, "held_stages", lambda *_: {"corpus": [workspace.home] * 3})
    monkeypatch.setattr(data_report, "read_stage", lambda _: stage)
    unused: Any = None
    assert failed_expectations(workspace, unused) == [
        {"source": "corpus", "expectation": "not met", "success": False}
    ]
