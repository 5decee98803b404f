"""What is expected of a source before it may train: suites of Great Expectations as Python code.

There is one for each stage's table, one for each task, one for the stages as a whole, one that compares with
the last accepted version, one for the balance of answers and one for the pictures. Those of the training set
stand in `training_set_expectations`, those of users are read by `own_suites`.

Great Expectations has no Polars engine, and long texts in pandas are slow and large. So Polars computes a
narrow frame (lengths, counts, truths) and a few facts about the stages, and the suites judge these.
Severity critical blocks the source, warning is recorded. The row rules stand in `quality.rules`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from great_expectations.expectations import (
    ExpectColumnMeanToBeBetween,
    ExpectColumnValueLengthsToEqual,
    ExpectColumnValuesToBeBetween,
    ExpectColumnValuesToBeInSet,
    ExpectColumnValuesToBeUnique,
    ExpectColumnValuesToNotBeNull,
    ExpectTableRowCountToBeBetween,
)
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from quality.language import LANGUAGES
from quality.pair_columns import num_pictures, whole_query
from quality.rules import answered
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, PAIR, TAGGED, Column, Task
from vipolyqwen_core.corpus.hashing import fingerprint

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING

MAX_REJECTED_SHARE = 0.2
MAX_DUPLICATE_SHARE = 0.2
MAX_OTHER_SHARE = 0.3
MAX_UNEXPECTED_LANGUAGE_SHARE = 0.2
MIN_BALANCE_PAIRS = 50
"""The answers of fewer pairs say nothing."""
MAX_DRIFT = 0.25
"""How far a share may move between two accepted versions before somebody should look."""

OPTIONAL = frozenset(
    {"query_images", "history", "target_images", "score", "negatives", "group_id", "positive_key"}
)
"""Columns of a pair that may be null."""

TABLES = {
    "pairs": "one narrow row for each validated pair",
    "balance": "one row for each task: how its answers and scores are spread",
    "pictures": "one row for each stored picture",
    "facts": "one row: counts and shares of the stages, and how far they moved",
}
"""The frames that are judged before a source is accepted; suites of one's own may be about any of them."""


@dataclass(frozen=True)
class Suite:
    """Expectations of one table."""

    name: str
    """As in Data Docs."""
    table: str
    """The frame that it judges: `curated`, `tagged`, one of TABLES, or one of the training set's."""
    expectations: Sequence[Expectation]
    """In order."""
    task: Task | None = None
    """Only the rows of this task; none: all."""
    check: str = ""
    """The asset check that reports it; empty: one of its own name."""
    sources: frozenset[str] = frozenset()
    """Only these sources; empty: all of them."""
    columns: Mapping[str, pl.Expr] = field(default_factory=dict)
    """Further columns of `pairs`, out of those of the contract's TAGGED."""

    def digest(self) -> str:
        """Changes with anything that the suite says, and with the check that says it."""
        said = [_in_order(expectation.configuration.to_json_dict()) for expectation in self.expectations]
        columns = {name: _spelled(value) for name, value in self.columns.items()}
        return fingerprint(self.name, self.table, self.task, self.check, said, columns)


def _in_order(said: Any, is_set: bool = False) -> Any:
    """The same with all sets as sorted lists: their own order is another one in each process.

    Great Expectations makes lists of sets itself, such as `value_set`, in the order of the process.
    """
    if isinstance(said, Mapping):
        return {key: _in_order(value, str(key).endswith("_set")) for key, value in said.items()}
    if isinstance(said, list | tuple | set | frozenset):
        values = [_in_order(value) for value in said]
        return sorted(values, key=repr) if is_set or isinstance(said, set | frozenset) else values
    return said


def _spelled(column: pl.Expr) -> str | bytes:
    """All that an expression says: its own text leaves out lists and arguments, as in `round()`.

    Python functions are known by their place alone: two processes may pickle one differently. So is a set
    within an expression spelled differently in two processes; a list is not.
    """
    text = str(column)
    return text if "python_udf" in text else column.meta.serialize()


def narrow_curated(rows: pl.LazyFrame) -> pl.LazyFrame:
    """One narrow row for each curated pair: what the suites look at."""
    return rows.select(**_curated_columns())


def narrow_pairs(rows: pl.LazyFrame, further: Mapping[str, pl.Expr] | None = None) -> pl.LazyFrame:
    """One narrow row for each tagged pair: that of the curated pair, and what tagging added."""
    return rows.select(**(_curated_columns() | _tagged_columns()), **(further or {}))


def names_of_columns() -> tuple[str, ...]:
    """Columns of `pairs`."""
    return tuple(_curated_columns() | _tagged_columns())


def _curated_columns() -> dict[str, pl.Expr]:
    pictures = {side: num_pictures(side) for side in ("query", "target")}
    turns = pl.col("history").list.len().fill_null(0).cast(pl.Int32)
    return {
        "sample_id": pl.col("sample_id").hash(seed=0),
        "task": pl.col("task").cast(pl.Categorical),
        "language": pl.col("language").cast(pl.Categorical),
        "query_chars": whole_query().str.len_chars().cast(pl.Int32),
        "target_chars": pl.col("target").str.len_chars().cast(pl.Int32),
        "query_pictures": pictures["query"],
        "target_pictures": pictures["target"],
        "query_has_content": _has_content("query", pictures["query"]),
        "target_has_content": _has_content("target", pictures["target"]),
        "turns": turns,
        "pictures_and_turns": pictures["query"] + turns,
        "score": pl.col("score"),
        "score_of_equals": pl.when(_is_target()).then("score"),
        "answer_in_query": answered().fill_null(False),
        "is_complete": _is_complete(PAIR),
    }


def _tagged_columns() -> dict[str, pl.Expr]:
    return {
        "prefix_is_task": pl.col("prefix") == pl.col("task"),
        "placeholders_match": placeholders_match(),
        "query_tokens": pl.col("query_tokens"),
        "target_tokens": pl.col("target_tokens"),
        "query_patches": pl.col("query_patches"),
        "target_patches": pl.col("target_patches"),
        "has_hashes": (pl.col("query_hash") != 0) & (pl.col("target_hash") != 0),
        "is_complete": _is_complete(TAGGED),  # in place of the curated columns alone
    }


def _is_complete(columns: Sequence[Column]) -> pl.Expr:
    """Whether all is there that a pair must have; expectations leave out nulls, and NaN with them."""
    needed = [column.name for column in columns if column.name not in OPTIONAL]
    return pl.all_horizontal(pl.col(needed).is_not_null()) & pl.col("score").is_not_nan().fill_null(True)


def _has_content(side: str, pictures: pl.Expr) -> pl.Expr:
    return (pictures > 0) | (pl.col(side).str.strip_chars().str.len_chars() > 0)


def _is_target() -> pl.Expr:
    """Whether the query says exactly what the target says."""
    same = pl.col("query").str.strip_chars() == pl.col("target").str.strip_chars()
    return same & (num_pictures("target") == 0)


def placeholders_match() -> pl.Expr:
    """Whether each side has as many `<image>` as pictures; without pictures, `<image>` is plain text."""
    texts = {"query": whole_query(), "target": pl.col("target")}
    return pl.all_horizontal(
        (num_pictures(side) == 0)
        | (text.str.count_matches(IMAGE_PLACEHOLDER, literal=True) == num_pictures(side))
        for side, text in texts.items()
    )


def true(column: str, severity: FailureSeverity, mostly: float = 1.0) -> Expectation:
    """Expect a truth to hold for (most of) the rows."""
    return ExpectColumnValuesToBeInSet(column=column, value_set=[True], mostly=mostly, severity=severity)


def between(
    column: str, low: float | None, high: float | None, severity: FailureSeverity, mostly: float = 1.0
) -> Expectation:
    """Expect values in a closed range; nulls are left out."""
    return ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, mostly=mostly, severity=severity
    )


def _rows() -> list[Expectation]:
    """What holds for the rows of any stage."""
    return [
        ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL),
        true("is_complete", CRITICAL),
        ExpectColumnValuesToBeUnique(column="sample_id", severity=CRITICAL),
        ExpectColumnValuesToBeInSet(
            column="task", value_set=[task.value for task in Task], severity=CRITICAL
        ),
        ExpectColumnValuesToBeInSet(column="language", value_set=list(LANGUAGES), severity=CRITICAL),
        true("query_has_content", CRITICAL),
        true("target_has_content", CRITICAL),
        ExpectColumnValuesToBeInSet(column="answer_in_query", value_set=[False], severity=CRITICAL),
        between("score", 0.0, 1.0, CRITICAL),
    ]


def curated_suite() -> Suite:
    """What holds for every curated pair."""
    return Suite(
        "curated",
        "curated",
        [
            *_rows(),
            between("query_chars", None, 20_000, WARNING, mostly=0.99),
            between("target_chars", None, 20_000, WARNING, mostly=0.99),
            between("turns", None, 100, WARNING, mostly=0.99),
        ],
    )


def tagged_suite() -> Suite:
    """What holds for tagged pairs, before the row rules of validation have had their say."""
    return Suite(
        "tagged",
        "tagged",
        [
            ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL),
            true("is_complete", CRITICAL),
            true("prefix_is_task", CRITICAL),
            true("has_hashes", CRITICAL),
            true("placeholders_match", WARNING, mostly=0.99),
            between("query_tokens", 1, None, WARNING, mostly=0.99),
            between("target_tokens", 1, None, WARNING, mostly=0.99),
        ],
    )


def pairs_suite() -> Suite:
    """What holds for every pair that may train, whatever its task."""
    return Suite(
        "validated",
        "pairs",
        [
            *_rows(),
            true("prefix_is_task", CRITICAL),
            true("placeholders_match", CRITICAL),
            true("has_hashes", CRITICAL),
            between("query_tokens", 1, None, CRITICAL),
            between("target_tokens", 1, None, CRITICAL),
            between("query_patches", 0, None, CRITICAL),
            between("target_patches", 0, None, CRITICAL),
        ],
    )


def task_suite(task: Task, scored: bool) -> Suite:
    """What holds for the pairs of one task.

    Args:
        scored: whether any of them has a score; translations, for one, have none
    """
    expectations = [] if task is Task.TEXT_PAIR and not scored else TASK_EXPECTATIONS[task]()
    return Suite(f"task_{task.value}", "pairs", expectations, task)


def _scored_pair() -> list[Expectation]:
    return [
        ExpectColumnValuesToNotBeNull(column="score", mostly=0.9, severity=WARNING),
        ExpectColumnMeanToBeBetween(column="score", min_value=0.02, max_value=0.98, severity=WARNING),
        between("score_of_equals", 0.99, None, WARNING),  # equal texts with a low score: one of them is wrong
    ]


def _instr() -> list[Expectation]:
    return [between("target_chars", 2, None, WARNING, mostly=0.95)]


def _with_picture() -> list[Expectation]:
    return [
        between("query_pictures", 1, None, CRITICAL),
        between("query_pictures", None, 16, WARNING),
    ]


def _several() -> list[Expectation]:
    """Several pictures, or several turns on one."""
    return [*_with_picture(), between("pictures_and_turns", 2, None, WARNING, mostly=0.5)]


TASK_EXPECTATIONS = {
    Task.TEXT_PAIR: _scored_pair,
    Task.INSTR: _instr,
    Task.OCR: _with_picture,
    Task.VQA_SINGLE: _with_picture,
    Task.VQA_MULTI: _several,
}


def facts_suite(languages_declared: bool) -> Suite:
    """What holds for the stages of the source as a whole; a frame of one row."""
    expectations = [
        true("curated_schema_is_right", CRITICAL),
        true("tagged_schema_is_right", CRITICAL),
        true("validated_schema_is_right", CRITICAL),
        true("is_sorted", CRITICAL),
        between("pairs", 1, None, CRITICAL),
        between("missing_records", 0, 0, CRITICAL),
        between("missing_curated", 0, 0, CRITICAL),
        between("missing_tagged", 0, 0, CRITICAL),
        between("missing_validated", 0, 0, CRITICAL),
        between("missing_pictures", 0, 0, CRITICAL),
        between("rejected_share", None, MAX_REJECTED_SHARE, WARNING),
        between("duplicate_share", None, MAX_DUPLICATE_SHARE, WARNING),
        between("other_share", None, MAX_OTHER_SHARE, WARNING),
    ]
    if languages_declared:
        expectations.append(
            between("unexpected_language_share", None, MAX_UNEXPECTED_LANGUAGE_SHARE, WARNING)
        )
    return Suite("stages", "facts", expectations)


def drift_suite() -> Suite:
    """How far the source may have moved since its last accepted version."""
    return Suite(
        "drift",
        "facts",
        [
            between("pairs_ratio", 0.5, 10.0, WARNING),
            between("length_ratio", 1 / 1.5, 1.5, WARNING),
            between("language_drift", None, MAX_DRIFT, WARNING),
            between("task_drift", None, MAX_DRIFT, WARNING),
            between("length_drift", None, MAX_DRIFT, WARNING),
            between("score_drift", None, MAX_DRIFT, WARNING),
            between("scored_drift", None, MAX_DRIFT, WARNING),
        ],
    )


def balance_of_tasks(rows: pl.LazyFrame, positive_score: float) -> pl.LazyFrame:
    """How the answers and scores of each task are spread; tasks of few pairs are left out.

    `top_target_share`: of the most frequent answer; `positive_share`: of scored pairs that are positives.

    Args:
        positive_score: from which score on a pair is one
    """
    answers = pl.col("target_hash")
    return (
        rows.group_by("task")
        .agg(
            pairs=pl.len(),
            top_target_share=answers.unique_counts().max() / pl.len(),
            distinct_target_share=answers.n_unique() / pl.len(),
            positive_share=(pl.col("score") >= pl.lit(positive_score, pl.Float32)).mean(),
            score_deviation=pl.col("score").std(),
        )
        .filter(pl.col("pairs") >= MIN_BALANCE_PAIRS)
        .sort("task")
    )


def balance_suite() -> Suite:
    """That no answer or score drowns the others of its task: a label that never changes teaches nothing."""
    return Suite(
        "balance",
        "balance",
        [
            between("top_target_share", None, 0.6, WARNING),
            between("positive_share", 0.05, 0.95, WARNING),
            between("score_deviation", 0.02, None, WARNING),
        ],
    )


def pictures_suite() -> Suite:
    """What holds for the stored pictures."""
    return Suite(
        "pictures",
        "pictures",
        [
            between("width", 1, None, CRITICAL),
            between("height", 1, None, CRITICAL),
            between("width", 14, None, WARNING, mostly=0.98),
            between("height", 14, None, WARNING, mostly=0.98),
            between("aspect", 1 / 200, 200, WARNING),
            ExpectColumnValueLengthsToEqual(column="phash", value=16, severity=CRITICAL),
            ExpectColumnValuesToBeUnique(column="image_id", severity=CRITICAL),
            ExpectColumnMeanToBeBetween(column="reencoded", max_value=0.5, severity=WARNING),
        ],
    )
