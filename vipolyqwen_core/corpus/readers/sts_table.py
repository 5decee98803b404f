"""Tables of two texts and a score: CSV, TSV, JSON, JSON Lines or Parquet, with a header or without."""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import STS_PLACES, Source
from vipolyqwen_core.corpus.readers.fields import answers_of, declared, keys_of
from vipolyqwen_core.corpus.readers.records import RawPair, parse_score
from vipolyqwen_core.corpus.readers.row_fields import MISSING, Key, Needs, look_up, required, text_of

ALIASES: dict[str, tuple[str, ...]] = {
    "query": ("sentence1", "text1", "s1"),
    "target": ("sentence2", "text2", "s2"),
    "score": ("similarity_score", "similarity", "label"),
}
UNIT_RANGE = (0.0, 1.0)
"""The range of a manifest that names none."""


def column_keys(source: Source, name: str) -> tuple[Key, ...]:
    """Where a column may stand."""
    if name not in source.columns and not source.header:
        place = STS_PLACES[name]
        return () if place in source.taken else (place,)
    return keys_of(source, name, *ALIASES[name])


def sts_needs(source: Source) -> Needs:
    """The fields that every row has: two texts."""
    return column_keys(source, "query"), column_keys(source, "target")


def sts_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pair of one row, or without a score one for each of several targets.

    A table of two texts alone has no scores. Where the manifest names their column or range, a row must.

    Raises:
        RecordError: a text is missing, or the score is no score
    """
    queries, targets = sts_needs(source)
    score_keys = column_keys(source, "score")
    is_declared = "score" in source.columns or source.score_range != UNIT_RANGE
    is_there = any(look_up(fields, key) is not MISSING for key in score_keys)
    has_score = is_there or (is_declared and bool(score_keys))
    score = required(fields, score_keys) if has_score else None
    query = text_of(required(fields, queries), "the query")
    target = required(fields, targets)
    texts = answers_of(target, "the target") if score is None else (text_of(target, "the target"),)
    return [
        RawPair(
            task=Task.TEXT_PAIR,
            query=query,
            target=text,
            score=None if score is None else parse_score(score, source.score_range),
            **declared(fields, source),
        )
        for text in texts
    ]
