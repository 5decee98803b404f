"""What is expected of a source before it may train: suites of Great Expectations as Python code.

Great Expectations has no Polars engine, and long texts in pandas are slow and large. So Polars computes a
narrow frame (lengths, counts, truths) and a few facts about the stages, and the suites judge these.
Severity critical blocks the source, warning is recorded. The row rules stand in `quality.rules`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
from great_expectations.expectations.core.expect_column_mean_to_be_between import ExpectColumnMeanToBeBetween
from great_expectations.expectations.core.expect_column_value_lengths_to_equal import (
    ExpectColumnValueLengthsToEqual,
)
from great_expectations.expectations.core.expect_column_values_to_be_between import (
    ExpectColumnValuesToBeBetween,
)
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_unique import (
    ExpectColumnValuesToBeUnique,
)
from great_expectations.expectations.core.expect_column_values_to_not_be_null import (
    ExpectColumnValuesToNotBeNull,
)
from great_expectations.expectations.core.expect_table_row_count_to_be_between import (
    ExpectTableRowCountToBeBetween,
)
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from quality.duplicates import whole_query
from quality.language import LANGUAGES, OTHER
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Task

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING

MAX_REJECTED_SHARE = 0.2
MAX_DUPLICATE_SHARE = 0.2
MAX_OTHER_SHARE = 0.3
MAX_UNEXPECTED_LANGUAGE_SHARE = 0.2
MAX_DRIFT = 0.25
"""How far a share may move between two accepted versions before somebody should look."""


@dataclass(frozen=True)
class Suite:
    """Expectations of one table."""

    name: str
    """As in Data Docs."""
    table: str
    """`pairs`, `facts` or `pictures`."""
    expectations: Sequence[Expectation]
    """In order."""
    task: Task | None = None
    """Only the rows of this task; none: all."""


def narrow_pairs(rows: pl.LazyFrame) -> pl.LazyFrame:
    """One narrow row for each tagged pair: what the suites look at."""
    pictures = {side: num_pictures(side) for side in ("query", "target")}
    content = {
        side: (pictures[side] > 0) | (pl.col(side).str.strip_chars().str.len_chars() > 0) for side in pictures
    }
    return rows.select(
        sample_id=pl.col("sample_id").hash(seed=0),
        task=pl.col("task").cast(pl.Categorical),
        language=pl.col("language").cast(pl.Categorical),
        prefix_is_task=pl.col("prefix") == pl.col("task"),
        query_chars=whole_query().str.len_chars().cast(pl.Int32),
        target_chars=pl.col("target").str.len_chars().cast(pl.Int32),
        query_pictures=pictures["query"],
        target_pictures=pictures["target"],
        placeholders_match=placeholders_match(),
        query_has_content=content["query"],
        target_has_content=content["target"],
        turns=pl.col("history").list.len().fill_null(0).cast(pl.Int32),
        score="score",
        query_is_target=_is_target(),
        score_of_equals=pl.when(_is_target()).then("score"),
        query_tokens="query_tokens",
        target_tokens="target_tokens",
        has_hashes=(pl.col("query_hash") != 0) & (pl.col("target_hash") != 0),
    )


def _is_target() -> pl.Expr:
    """Whether the query says exactly what the target says."""
    same = pl.col("query").str.strip_chars() == pl.col("target").str.strip_chars()
    return same & (num_pictures("target") == 0)


def num_pictures(side: str) -> pl.Expr:
    """Pictures of a side."""
    return pl.col(f"{side}_images").list.len().fill_null(0).cast(pl.Int32)


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


def pairs_suite() -> Suite:
    """What holds for every pair, whatever its task."""
    return Suite(
        "pairs",
        "pairs",
        [
            ExpectTableRowCountToBeBetween(min_value=1, severity=CRITICAL),
            ExpectColumnValuesToBeUnique(column="sample_id", severity=CRITICAL),
            ExpectColumnValuesToBeInSet(
                column="task", value_set=[task.value for task in Task], severity=CRITICAL
            ),
            ExpectColumnValuesToBeInSet(column="language", value_set=list(LANGUAGES), severity=CRITICAL),
            true("prefix_is_task", CRITICAL),
            true("query_has_content", CRITICAL),
            true("target_has_content", CRITICAL),
            true("placeholders_match", CRITICAL),
            true("has_hashes", CRITICAL),
            between("score", 0.0, 1.0, CRITICAL),
            between("query_tokens", 1, None, CRITICAL),
            between("target_tokens", 1, None, CRITICAL),
            between("query_chars", None, 20_000, WARNING, mostly=0.99),
            between("target_chars", None, 20_000, WARNING, mostly=0.99),
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
    return [
        ExpectColumnValuesToBeInSet(column="query_is_target", value_set=[False], severity=CRITICAL),
        between("target_chars", 2, None, WARNING, mostly=0.95),
    ]


def _with_picture() -> list[Expectation]:
    return [
        ExpectColumnValuesToBeInSet(column="query_is_target", value_set=[False], severity=CRITICAL),
        between("query_pictures", 1, None, CRITICAL),
        between("query_pictures", None, 16, WARNING),
    ]


def _dialogue() -> list[Expectation]:
    return [*_with_picture(), between("turns", 1, None, WARNING, mostly=0.5)]


TASK_EXPECTATIONS = {
    Task.TEXT_PAIR: _scored_pair,
    Task.INSTR: _instr,
    Task.OCR: _with_picture,
    Task.VQA_SINGLE: _with_picture,
    Task.VQA_MULTI: _dialogue,
}


def facts_suite(has_earlier: bool, languages_declared: bool) -> Suite:
    """What holds for the stages of the source as a whole; a frame of one row."""
    expectations = [
        true("schema_is_right", CRITICAL),
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
    if has_earlier:
        expectations += [
            between("pairs_ratio", 0.5, None, WARNING),
            between("language_drift", None, MAX_DRIFT, WARNING),
            between("task_drift", None, MAX_DRIFT, WARNING),
            between("length_ratio", 1 / 1.5, 1.5, WARNING),
            between("score_drift", None, MAX_DRIFT, WARNING),
        ]
    return Suite("stages", "facts", expectations)


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


@dataclass(frozen=True)
class Profile:
    """How an accepted version looked, for the next one to be compared with."""

    pairs: int
    """Pairs that were accepted."""
    languages: dict[str, float] = field(default_factory=dict)
    """Share of the pairs by language."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Share of the pairs by task."""
    mean_chars: float = 0.0
    """Characters of both sides."""
    mean_score: float | None = None
    """Of scored pairs."""

    def drift(self, earlier: "Profile") -> dict[str, float]:
        """Columns of the facts that compare with an earlier version."""
        scores = (self.mean_score, earlier.mean_score)
        return {
            "pairs_ratio": self.pairs / earlier.pairs if earlier.pairs else 1.0,
            "language_drift": total_variation(self.languages, earlier.languages),
            "task_drift": total_variation(self.tasks, earlier.tasks),
            "length_ratio": self.mean_chars / earlier.mean_chars if earlier.mean_chars else 1.0,
            "score_drift": 0.0 if scores[0] is None or scores[1] is None else abs(scores[0] - scores[1]),
        }


def profile(narrow: pl.DataFrame) -> Profile:
    """The profile of narrow pairs."""

    def shares(column: str) -> dict[str, float]:
        counts = narrow[column].cast(pl.String).value_counts().sort("count", column, descending=True)
        return {name: count / narrow.height for name, count in counts.iter_rows()}

    chars = narrow.select((pl.col("query_chars") + pl.col("target_chars")).mean()).item()
    mean_score = narrow.select(pl.col("score").mean()).item()
    return Profile(
        pairs=narrow.height,
        languages=shares("language"),
        tasks=shares("task"),
        mean_chars=float(chars or 0.0),
        mean_score=None if mean_score is None else float(mean_score),
    )


def total_variation(a: dict[str, float], b: dict[str, float]) -> float:
    """Half the sum of the differences of two distributions: the share that moved."""
    return sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in a.keys() | b.keys()) / 2


def unexpected_share(languages: dict[str, float], expected: Sequence[str]) -> float:
    """Share of pairs in a language that was not declared; `other` may be numbers, and does not count."""
    return sum(share for name, share in languages.items() if name not in expected and name != OTHER)
