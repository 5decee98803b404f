"""What is expected of the training set as a whole: its rows on both sides of the split, and its shares."""

from pathlib import Path
from typing import Any

import polars as pl
from great_expectations.expectations import (
    ExpectColumnValuesToBeInSet,
    ExpectColumnValuesToBeUnique,
    ExpectColumnValuesToNotBeNull,
)

from quality.drift import total_variation
from quality.expectations import CRITICAL, MAX_OTHER_SHARE, WARNING, Suite, between, narrow_pairs, true
from quality.judge import judge
from quality.language import OTHER
from quality.pair_columns import num_pictures
from quality.polars_tables import count_rows, polars_schema, scan_split
from vipolyqwen_core.contract import PLAN_INDEX, TRAINING, Split
from vipolyqwen_core.workspace import Workspace

MAX_SOURCE_SHARE = 0.95
MAX_EVAL_SHARE = 0.5
MAX_SPLIT_DISTANCE = 0.25
"""How far the tasks, languages or sources of the evaluation may differ from those that are trained on."""
MIN_ROWS = 200
"""Shares of fewer rows say nothing."""


def judge_training_set(workspace: Workspace) -> list[dict[str, Any]]:
    """One line for each expectation, as `judge` gives them; Data Docs beside those of the sources."""
    folder = workspace.training_set
    tables = {split: scan_split(folder, split) for split in Split}
    rows = pl.concat([narrow_training(scan) for scan in tables.values()]).collect(engine="streaming")
    frames = {"training_pairs": rows, "training_facts": pl.DataFrame([training_facts(folder)])}
    return judge(
        [training_pairs_suite(), training_facts_suite(rows.height)],
        frames,
        workspace.data_docs / "training_set",
    )


def narrow_training(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The narrow row of a pair, and what the training set added to it."""
    pictures = {
        side: pl.col(f"{side}_image_rows").list.len().fill_null(0) == num_pictures(side)
        for side in ("query", "target")
    }
    return narrow_pairs(
        rows,
        {
            "split": pl.col("split").cast(pl.Categorical),
            "component": pl.col("component"),
            "pictures_are_placed": pictures["query"] & pictures["target"],
        },
    )


def training_pairs_suite() -> Suite:
    """What holds for every row that trains or evaluates."""
    return Suite(
        "training_set",
        "training_pairs",
        [
            true("is_complete", CRITICAL),
            ExpectColumnValuesToBeUnique(column="sample_id", severity=CRITICAL),
            ExpectColumnValuesToBeInSet(
                column="split", value_set=[split.value for split in Split], severity=CRITICAL
            ),
            ExpectColumnValuesToNotBeNull(column="component", severity=CRITICAL),
            true("prefix_is_task", CRITICAL),
            true("placeholders_match", CRITICAL),
            true("pictures_are_placed", CRITICAL),
            true("has_hashes", CRITICAL),
            ExpectColumnValuesToBeInSet(column="answer_in_query", value_set=[False], severity=CRITICAL),
            between("query_tokens", 1, None, CRITICAL),
            between("target_tokens", 1, None, CRITICAL),
            between("score", 0.0, 1.0, CRITICAL),
        ],
    )


def training_facts(folder: Path) -> dict[str, Any]:
    """Schemas, and shares by source, language and task."""
    tables = {split: scan_split(folder, split) for split in Split}
    index = pl.scan_parquet(folder / "index.parquet")
    counts = {
        split: scan.group_by("source", "language", "task").len().collect() for split, scan in tables.items()
    }
    whole, evaluation = pl.concat(counts.values()), counts[Split.EVAL]
    num_train, num_eval = (int(counts[split]["len"].sum()) for split in Split)
    sources = _shares(whole, "source")
    return {
        "tables_have_schema": all(
            scan.collect_schema() == polars_schema(TRAINING) for scan in tables.values()
        ),
        "index_has_schema": index.collect_schema() == polars_schema(PLAN_INDEX),
        "index_rows_off": count_rows(index) - num_train,
        "num_sources": len(sources),
        "largest_source_share": max(sources.values(), default=0.0),
        "other_share": _shares(whole, "language").get(OTHER, 0.0),
        "eval_share": num_eval / max(num_train + num_eval, 1),
        "tasks_without_evaluation": len(_shares(whole, "task")) - len(_shares(evaluation, "task")),
        **{
            f"split_distance_of_{column}": total_variation(
                _shares(counts[Split.TRAIN], column), _shares(evaluation, column)
            )
            for column in ("task", "language", "source")
        },
    }


def training_facts_suite(num_rows: int) -> Suite:
    """What holds for the training set as a whole; shares only where there are rows enough."""
    expectations = [
        true("tables_have_schema", CRITICAL),
        true("index_has_schema", CRITICAL),
        between("index_rows_off", 0, 0, CRITICAL),
    ]
    if num_rows >= MIN_ROWS:
        expectations += [
            between("largest_source_share", None, MAX_SOURCE_SHARE, WARNING),
            between("other_share", None, MAX_OTHER_SHARE, WARNING),
            between("eval_share", None, MAX_EVAL_SHARE, WARNING),
            between("tasks_without_evaluation", 0, 0, WARNING),
            *(
                between(f"split_distance_of_{column}", None, MAX_SPLIT_DISTANCE, WARNING)
                for column in ("task", "language", "source")
            ),
        ]
    return Suite("training_set_facts", "training_facts", expectations)


def _shares(counts: pl.DataFrame, column: str) -> dict[str, float]:
    grouped = counts.group_by(column).agg(pl.col("len").sum()).sort(column)
    total = max(int(grouped["len"].sum()), 1)
    return {str(name): count / total for name, count in grouped.iter_rows()}
