"""Rules that reject: every name that a ledger may hold, what it means, and the rules for rows as Polars.

Rules for records and pictures are applied where they are read (`vipolyqwen_core.corpus`); they are listed
here with the rest, so that one place says what each name means.
"""

from dataclasses import dataclass

import polars as pl

from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Task

RULES: dict[str, str] = {
    # curated: rows
    "empty_query": "The query has neither text nor picture.",
    "empty_target": "The target has neither text nor picture.",
    "query_too_short": "The query's text is shorter than curation.min_chars, and it has no picture.",
    "target_too_short": "The target's text is shorter than curation.min_chars, and it has no picture.",
    "query_too_long": "The query's text is longer than curation.max_chars.",
    "target_too_long": "The target's text is longer than curation.max_chars.",
    "repetitive_query": "One repeated line, word or character fills the query.",
    "repetitive_target": "One repeated line, word or character fills the target.",
    "score_out_of_range": "The score is not a number in [0, 1].",
    "answer_in_query": "The query ends with the whole answer, so that there is nothing to learn.",
    # validated
    "placeholder_mismatch": "The pair has not as many <image> as pictures.",
    "nothing_to_encode": "A side has no tokens.",
    # curated and training_set: duplicates
    "exact_duplicate": "Task, query, target and pictures equal those of a row that is kept.",
    "near_duplicate": "Query and target nearly equal those of a row that is kept, pictures are the same.",
    # training_set: split
    "off_limits": "The source is a benchmark that is off limits: its rows never train.",
    "linked_to_off_limits": "The row shares a picture, text or group with a benchmark that is off limits.",
    "evaluation_retired": "The row evaluated before, but its component now trains, too.",
    "evaluation_full": "The row's component evaluates, and evaluation has its split.max_eval_pairs rows.",
}
"""Rule -> one sentence. Names are keys to count by: they never change their meaning."""


@dataclass(frozen=True)
class RowRule:
    """A rule for one row."""

    name: str
    """As in RULES."""
    fails: pl.Expr
    """True where the row is to be rejected."""
    value: pl.Expr
    """The offending value, as text."""


MIN_REPETITION_CHARS = 100
MIN_ANSWER_CHARS = 32
"""A shorter answer may well stand at the end of a question: `true or false`."""


def row_rules(settings: CurationSettings) -> list[RowRule]:
    """The rules of curation, in the order in which they are asked. Columns: those of a pair."""
    rules = []
    for side in ("query", "target"):
        text, chars = pl.col(side), pl.col(side).str.len_chars()
        bare = pl.col(f"{side}_images").list.len().fill_null(0) == 0
        blank = text.str.replace_all(IMAGE_PLACEHOLDER, "", literal=True).str.strip_chars() == ""
        # Where a side has pictures, `<image>` alone is no text, but the pictures are content.
        rules += [
            RowRule(f"empty_{side}", bare & (text.str.strip_chars() == "") | ~bare & text.is_null(), text),
            RowRule(f"{side}_too_short", bare & ~blank & (chars < settings.min_chars), text),
            RowRule(f"{side}_too_long", chars > settings.max_chars, pl.format("{} characters", chars)),
            RowRule(f"repetitive_{side}", _repeats(text, settings.max_repetition), text),
        ]
    score = pl.col("score")
    rules.append(
        RowRule(
            "score_out_of_range",
            score.is_not_null() & (score.is_nan() | (score < 0) | (score > 1)),
            score.cast(pl.String),
        )
    )
    rules.append(RowRule("answer_in_query", _answered(), pl.col("target")))
    return rules


def _answered() -> pl.Expr:
    """The seed's mistake: the answer stood in the query's own conversation. Equal sentences are a pair."""
    query, target = pl.col("query").str.strip_chars(), pl.col("target").str.strip_chars()
    ends = query.str.ends_with(target) & (target.str.len_chars() >= MIN_ANSWER_CHARS)
    only_text = pl.col("target_images").list.len().fill_null(0) == 0
    return (pl.col("task") != Task.TEXT_PAIR.value) & only_text & ((query == target) | ends)


def _repeats(text: pl.Expr, max_share: float) -> pl.Expr:
    """Whether one repeated line, word or character fills more than `max_share` of a long text.

    Only texts with few distinct words or characters are counted out.
    """
    words = text.str.split(" ")
    few_words = words.list.n_unique() * 3 <= words.list.len()
    lines = text.str.count_matches("\n") >= 2
    few_characters = (words.list.len() <= 3) & (text.str.len_chars() >= MIN_REPETITION_CHARS)
    suspected = (text.str.len_chars() >= MIN_REPETITION_CHARS) & (few_words | lines | few_characters)
    return (
        pl.when(suspected)
        .then(text)
        .map_elements(lambda value: repetition_share(value) > max_share, return_dtype=pl.Boolean)
        .fill_null(False)
    )


def repetition_share(text: str) -> float:
    """The share of the text that its most repeated line, word or character fills; 0 where nothing repeats."""
    shares = [0.0]
    for parts in (text.split("\n"), text.split(), list(text)):
        filled: dict[str, int] = {}
        for part in parts:
            filled[part.strip()] = filled.get(part.strip(), 0) + 1
        size = sum(len(part.strip()) for part in parts)
        most = max((count * len(part) for part, count in filled.items() if count > 2), default=0)
        shares.append(most / size if size else 0.0)
    return max(shares)


def first_failure(rows: pl.DataFrame, rules: list[RowRule]) -> pl.DataFrame:
    """The rows with `rule`, `reason` and `value` of the first rule that each of them fails; null: none.

    Each rule is asked of the rows that no earlier one rejected.
    """
    none = {name: pl.lit(None, dtype=pl.String) for name in ("rule", "reason", "value")}
    rows = rows.with_columns(**none) if "rule" not in rows.columns else rows
    flags = rows.select(rule.fails.fill_null(False).alias(rule.name) for rule in rules)
    rows = pl.concat([rows, flags], how="horizontal")
    for rule in rules:
        fails = pl.col("rule").is_null() & pl.col(rule.name)
        rows = rows.with_columns(
            rule=pl.when(fails).then(pl.lit(rule.name)).otherwise("rule"),
            reason=pl.when(fails).then(pl.lit(RULES[rule.name])).otherwise("reason"),
            value=pl.when(fails).then(rule.value).otherwise("value"),
        )
    return rows.drop([rule.name for rule in rules])
