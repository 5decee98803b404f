"""Which pairs are copies of another: equal ones, then near ones, and which copy stays.

A pair is dropped only when task, query (earlier turns included), target and pictures all match another's:
exactly, or nearly in text and exactly in pictures. Texts that differ in a number are never near; nor are
those with more or fewer `<image>`, of which one may be refused later on and take the other along. Earlier
turns are compared apart from the question: dialogues with a long beginning in common may end on different
ones. The copy that stays: rather another source's than a benchmark's; more labels (score, group_id,
positive_key, negatives); then the longer text; then the earlier row.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from quality.duplicates import (
    comparable,
    exact_duplicates,
    near_duplicates,
    near_pairs,
    numbers_key,
)
from quality.pair_columns import earlier_turns
from quality.rules import RULES
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER

EXACT, NEAR = "exact_duplicate", "near_duplicate"
COPY = pl.Enum([EXACT, NEAR])
COMPARED = ("query", "target", "history")
LABELS = ("score", "group_id", "positive_key")
MAX_CHARS = 2**20 - 1
MAX_ROWS = 2**38


def find_duplicates(rows: pl.LazyFrame, settings: CurationSettings, scratch: Path) -> pl.DataFrame:
    """The rows to drop: `row`, `kept` (the row that stays), `rule`, `reason`, `value`.

    Args:
        rows: `row`, the columns of a pair, query_hash and target_hash
        scratch: a folder of one's own
    """
    return explain_copies(find_copies(rows, settings, scratch), rows)


def find_copies(
    rows: pl.LazyFrame, settings: CurationSettings, scratch: Path, last: Sequence[str] = ()
) -> pl.DataFrame:
    """The rows to drop, numbers only: `row`, `kept` (the row that stays), `rule` (an Enum), `similarity`.

    Args:
        rows, scratch: as `find_duplicates` takes them
        last: sources whose row stays only where no other source has one: benchmarks, which are off limits
    """
    ranked = rows.with_columns(rank=preference(last))
    exact = exact_duplicates(ranked, ["task", "query_hash", "target_hash"])
    distinct = ranked.join(exact.lazy(), on="row", how="anti")
    pairs = near_pairs(_texts(distinct, settings), COMPARED, settings.near_duplicate_threshold,
                       settings.seed, scratch)  # fmt: skip
    members = pl.concat([pairs["a"], pairs["b"]]).unique().alias("row").to_frame()
    ranks = (
        distinct.select("row", "rank").join(members.lazy(), on="row", how="semi").collect(engine="streaming")
    )
    near = near_duplicates(pairs, ranks)
    # What an exact copy was kept for may itself be near a better one: that one is what stays.
    final = near.select(kept="row", final="kept")
    exact = exact.join(final, on="kept", how="left", maintain_order="left").select(
        "row", kept=pl.coalesce("final", "kept"), rule=pl.lit(EXACT, dtype=COPY), similarity=pl.lit(1.0)
    )
    near = near.select("row", "kept", "similarity", rule=pl.lit(NEAR, dtype=COPY))
    return pl.concat([exact, near], how="diagonal").sort("row")


def preference(last: Sequence[str] = ()) -> pl.Expr:
    """A number for each row, distinct; the lowest of a set of copies stays."""
    is_last = pl.col("source").is_in(last).cast(pl.Int64)
    labels = pl.sum_horizontal(pl.col(name).is_not_null().cast(pl.Int64) for name in LABELS)
    labels = labels + pl.col("negatives").is_not_null().cast(pl.Int64)
    chars = (pl.col("query").str.len_chars() + pl.col("target").str.len_chars()).cast(pl.Int64)
    first = 5 * is_last + 4 - labels
    return (first * 2**20 + (MAX_CHARS - chars.clip(0, MAX_CHARS))) * MAX_ROWS + pl.col("row")


def _texts(rows: pl.LazyFrame, settings: CurationSettings) -> pl.LazyFrame:
    """`row`, `block`, COMPARED: long texts to compare; all the rest must be equal, by the block."""
    sources = {"query": pl.col("query"), "target": pl.col("target"), "history": earlier_turns()}
    rows = rows.select(
        "row", "task", "query_images", "target_images", **{name: comparable(t) for name, t in sources.items()}
    )
    texts = {name: pl.col(name) for name in COMPARED}
    long = {name: text.str.len_chars() >= settings.min_linking_chars for name, text in texts.items()}
    rest = [pl.when(~long[name]).then(text).alias(f"short_{name}") for name, text in texts.items()]
    rest += [numbers_key(text).alias(f"{name}_numbers") for name, text in texts.items()]
    rest += [
        text.str.count_matches(IMAGE_PLACEHOLDER, literal=True).alias(f"{name}_places")
        for name, text in texts.items()
    ]
    same = pl.struct("task", "query_images", "target_images", *rest)
    return rows.select(
        "row",
        block=same.hash(seed=0),
        **{name: pl.when(long[name]).then(text) for name, text in texts.items()},
    ).filter(pl.any_horizontal(pl.col(name).is_not_null() for name in COMPARED))


def explain_copies(dropped: pl.DataFrame, rows: pl.LazyFrame) -> pl.DataFrame:
    """The rows that `find_copies` gives, with reason and value: which row stays in their place."""
    facts = rows.select("row", "sample_id", "source", "file", "line", "score")
    needed = pl.concat([dropped["row"], dropped["kept"]]).unique().alias("row").to_frame()
    known = facts.join(needed.lazy(), on="row", how="semi").collect(engine="streaming")
    joined = dropped.join(known.select("row", own_score="score"), on="row", how="left").join(
        known.rename({"row": "kept"}), on="kept", how="left"
    )
    sentences = pl.col("rule").replace_strict(
        {rule: RULES[rule] for rule in (EXACT, NEAR)}, return_dtype=pl.String
    )
    place = pl.format(" It is {}, line {} of source {}", "file", "line", "source")
    similarity = pl.when(pl.col("rule") == NEAR).then(
        pl.format(", similarity {}", pl.col("similarity").round(3))
    ).otherwise(pl.lit(""))  # fmt: skip
    scores = (
        pl.when(pl.col("own_score") != pl.col("score"))
        .then(pl.format("; scores differ: {} here, {} there", "own_score", "score"))
        .otherwise(pl.lit(""))
    )
    return joined.select(
        "row",
        "kept",
        pl.col("rule").cast(pl.String),
        reason=pl.concat_str(sentences, place, similarity, scores, pl.lit(".")),
        value="sample_id",
    ).sort("row")
