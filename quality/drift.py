"""How a version of a source looks, and how far it has moved from the last accepted one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from quality.language import OTHER

SCORE_BINS = 10


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
    lengths: dict[str, float] = field(default_factory=dict)
    """Share of the pairs by characters of both sides, in powers of two."""
    scores: dict[str, float] = field(default_factory=dict)
    """Share of the scored pairs by tenths of the score."""
    scored_share: float | None = None
    """Share of the pairs that have a score; versions that were accepted before it was kept have none."""

    def drift(self, earlier: "Profile") -> dict[str, float]:
        """Columns of the facts that compare with an earlier version."""
        return {
            "pairs_ratio": self.pairs / earlier.pairs,
            "language_drift": total_variation(self.languages, earlier.languages),
            "task_drift": total_variation(self.tasks, earlier.tasks),
            "length_ratio": self.mean_chars / earlier.mean_chars if earlier.mean_chars else 1.0,
            "length_drift": total_variation(self.lengths, earlier.lengths) if earlier.lengths else 0.0,
            "score_drift": total_variation(self.scores, earlier.scores) if earlier.scores else 0.0,
            "scored_drift": 0.0
            if self.scored_share is None or earlier.scored_share is None
            else abs(self.scored_share - earlier.scored_share),
        }


def profile(narrow: pl.DataFrame) -> Profile:
    """The profile of narrow pairs."""

    def shares(value: pl.Expr) -> dict[str, float]:
        values = narrow.select(value.cast(pl.String).alias("value")).to_series().drop_nulls()
        counts = values.value_counts().sort("count", "value", descending=True)
        return {name: count / len(values) for name, count in counts.iter_rows()}

    chars = pl.col("query_chars") + pl.col("target_chars")
    score_bin = (pl.col("score") * SCORE_BINS).floor().clip(0, SCORE_BINS - 1).cast(pl.Int8)
    mean_chars = narrow.select(chars.mean()).item()
    mean_score = narrow.select(pl.col("score").mean()).item()
    return Profile(
        pairs=narrow.height,
        languages=shares(pl.col("language")),
        tasks=shares(pl.col("task")),
        mean_chars=float(mean_chars or 0.0),
        mean_score=None if mean_score is None else float(mean_score),
        lengths=shares((chars + 1).log(2).floor().cast(pl.Int8)),
        scores=shares(score_bin),
        scored_share=narrow["score"].count() / max(narrow.height, 1),
    )


def total_variation(a: dict[str, float], b: dict[str, float]) -> float:
    """Half the sum of the differences of two distributions: the share that moved."""
    return sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in a | b) / 2


def unexpected_share(languages: dict[str, float], expected: Sequence[str]) -> float:
    """Share of pairs in a language that was not declared; `other` may be numbers, and does not count."""
    return sum(share for name, share in languages.items() if name not in expected and name != OTHER)
