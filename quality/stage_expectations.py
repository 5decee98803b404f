"""The suites of the stages before validation, judged where the stage ends: what is wrong stops there."""

from typing import Any

import polars as pl

from quality.expectations import Suite, curated_suite, narrow_curated, narrow_pairs, tagged_suite
from quality.judge import judge
from vipolyqwen_core.workspace import Workspace


def judge_curated(source: str, workspace: Workspace) -> list[dict[str, Any]]:
    """One line for each expectation on the curated pairs of a source, as `judge` gives them."""
    rows = pl.scan_parquet(workspace.curated(source) / "pairs.parquet")
    frame = narrow_curated(rows).collect(engine="streaming")
    return _judge("curated", source, workspace, frame, curated_suite())


def judge_tagged(source: str, workspace: Workspace) -> list[dict[str, Any]]:
    """One line for each expectation on the tagged pairs of a source, as `judge` gives them."""
    rows = pl.scan_parquet(workspace.tagged(source) / "pairs.parquet")
    frame = narrow_pairs(rows).collect(engine="streaming")
    return _judge("tagged", source, workspace, frame, tagged_suite())


def _judge(
    table: str, source: str, workspace: Workspace, frame: pl.DataFrame, suite: Suite
) -> list[dict[str, Any]]:
    return judge([suite], {table: frame}, workspace.data_docs / source / table)
