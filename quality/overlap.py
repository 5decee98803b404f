"""Overlap with benchmarks: rows that share a run of 13 words with a source that is off limits.

Near duplicates compare whole sides. A benchmark's question may also stand inside a longer text; the usual
test for that is a shared 13-gram of words (Brown et al. 2020, GPT-3, appendix C). A Chinese character counts
as a word.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quality.duplicates import comparable, murmur_mix
from quality.pair_columns import whole_query
from vipolyqwen_core.hashes import Hashes, is_among

GRAM_WORDS = 13
WORDS = r"\p{Han}|[\p{L}\p{N}--\p{Han}]+"
BATCH_ROWS = 20_000
OVERLAP_SCHEMA = {"row": pl.Int64, "key": pl.UInt64}


def overlap_links(rows: pl.LazyFrame, off_limits: Sequence[str]) -> pl.DataFrame:
    """Links by 13-grams that a benchmark holds: `row`, `key`, a line for each row and gram, both sides.

    Args:
        rows: `row`, `source` and the columns of a pair
        off_limits: names of the sources that are benchmarks
    """
    if not off_limits:
        return pl.DataFrame(schema=OVERLAP_SCHEMA)
    banned = pl.col("source").is_in(list(off_limits))
    own = _grams(rows.filter(banned))
    if own.is_empty():
        return own
    held = own["key"].unique().sort().to_numpy()
    return pl.concat([own, _grams(rows.filter(~banned), held)]).unique().sort("row", "key")


def _grams(rows: pl.LazyFrame, held: Hashes | None = None) -> pl.DataFrame:
    """The 13-grams of rows, of the held ones where they are given, one at least."""
    texts = rows.select("row", texts=pl.concat_list(comparable(whole_query()), comparable(pl.col("target"))))
    found = [pl.DataFrame(schema=OVERLAP_SCHEMA)]
    for batch in texts.collect_batches(chunk_size=BATCH_ROWS, engine="streaming"):
        words = (
            batch.explode("texts")
            .with_row_index("text")
            .with_columns(word=pl.col("texts").str.extract_all(WORDS))
            .filter(pl.col("word").list.len() >= GRAM_WORDS)
            .select("row", "text", "word")
            .explode("word")
            .with_columns(word=pl.col("word").hash(seed=0))
        )
        if words.is_empty():
            continue
        keys, starts = _rolling(words["word"].to_numpy(), words["text"].to_numpy())
        table = pl.DataFrame({"row": words["row"].to_numpy()[starts], "key": keys}, schema=OVERLAP_SCHEMA)
        if held is not None:
            table = table.filter(pl.Series(is_among(keys, held)))
        found.append(table.unique())
    return pl.concat(found)


def _rolling(words: Hashes, texts: NDArray[np.uint32]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash of every run of 13 words within a text, and where it starts."""
    size = len(words) - GRAM_WORDS + 1
    keys = np.zeros(size, dtype=np.uint64)
    for place in range(GRAM_WORDS):
        keys = murmur_mix(keys * np.uint64(31) + words[place : place + size])
    starts = np.flatnonzero(texts[:size] == texts[GRAM_WORDS - 1 :])
    return keys[starts], starts
