"""Duplicates: equal rows by key, near rows by MinHash signatures, bands and a true comparison.

Two texts are near when the Jaccard similarity of their character 5-grams reaches the threshold. Signatures
(rensa) only propose: every proposed pair is compared truly. Signatures are never held: only their bands are
kept, on disk, and each band is joined on its own, so that memory grows by some bytes a row.

    near_pairs        which rows of a table are near in all of their texts
    exact_duplicates  which rows have the same key as a better one
    near_duplicates   which rows are near a better one that stays
"""

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rensa import RMinHash

NUM_BANDS = 16
BAND_ROWS = 8
"""A pair of similarity s meets in some band with probability 1 - (1 - s^8)^16: 0.994 at 0.85, 0.06 at 0.5."""
SHINGLE_CHARS = 5
BATCH_ROWS = 20_000
SMALL_BUCKET = 16
"""All pairs of a smaller bucket are compared. In a larger one, each row meets its neighbour and the first."""
PAIRS_AT_ONCE = 50_000

PAIR_SCHEMA = {"a": pl.Int64, "b": pl.Int64, "similarity": pl.Float64}

Hashes = NDArray[np.uint64]


def comparable(text: pl.Expr) -> pl.Expr:
    """The text as near duplicates are compared: lower case, white space folded."""
    return text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def earlier_turns() -> pl.Expr:
    """The earlier turns of a dialogue as one text; null where there are none."""
    return pl.col("history").list.eval(pl.element().struct.field("text")).list.join("\n")


def whole_query() -> pl.Expr:
    """The query side as one text: earlier turns of a dialogue belong to it."""
    turns = earlier_turns()
    return pl.when(turns.is_null()).then("query").otherwise(turns + "\n" + pl.col("query"))


def numbers_key(text: pl.Expr) -> pl.Expr:
    """A hash of the numbers in a text. Texts that differ in a number say different things, however alike."""
    return text.str.extract_all(r"\d+").list.join(" ").hash(seed=0)


def shingles(texts: Sequence[str], salt: int = 0) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the character 5-grams of each text, one after the other; a shorter text has none.

    Shapes:
        returns: flat hashes; offsets [len(texts) + 1] of each text in them
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    counts = np.maximum(lengths - SHINGLE_CHARS + 1, 0)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    if offsets[-1] == 0:
        return np.zeros(0, dtype=np.uint64), offsets
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    num_windows = len(points) - SHINGLE_CHARS + 1
    hashes = np.full(num_windows, salt, dtype=np.uint64)
    for place in range(SHINGLE_CHARS):
        hashes = hashes * np.uint64(0x100000001B3) + points[place : num_windows + place]
    starts = np.cumsum(lengths) - lengths
    windows = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    return mix(hashes[windows]), offsets


def mix(hashes: Hashes) -> Hashes:
    """Spread 64-bit numbers evenly (the finaliser of MurmurHash3)."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))


def band_hashes(hashes: Hashes, offsets: NDArray[np.int64], seed: int) -> Hashes:
    """The bands of the MinHash signature of each text.

    Shapes:
        returns: [texts, NUM_BANDS]
    """
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), NUM_BANDS * BAND_ROWS, seed
    )
    signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(-1, NUM_BANDS, BAND_ROWS)
    bands = np.zeros(signatures.shape[:2], dtype=np.uint64)
    for row in range(BAND_ROWS):
        bands = mix(bands * np.uint64(31) + signatures[:, :, row])
    return bands


def near_pairs(
    rows: pl.LazyFrame, texts: Sequence[str], threshold: float, seed: int, scratch: Path
) -> pl.DataFrame:
    """Pairs of rows whose texts are all near: `a`, `b` (a < b) and the lowest similarity.

    `rows` has an int64 `row`, a uint64 `block` (only rows of one block are compared) and the text columns.
    A text that is null takes no part; where one row has it and the other has not, they are not near. So
    rows with nothing to compare never pair. `scratch` is a folder of one's own; it is removed at the end.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        for number, batch in enumerate(rows.collect_batches(chunk_size=BATCH_ROWS, engine="streaming")):
            _write_bands(batch, texts, seed, scratch / f"bands_{number:06}.parquet")
        candidates = _candidates(scratch)
        return _verify(rows, texts, candidates, threshold)
    finally:
        shutil.rmtree(scratch)


def _write_bands(batch: pl.DataFrame, texts: Sequence[str], seed: int, path: Path) -> None:
    """Signatures of a batch, as one 64-bit hash a band; rows with nothing to compare are left out."""
    batch = batch.filter(pl.any_horizontal(pl.col(name).str.len_chars() >= SHINGLE_CHARS for name in texts))
    parts = [
        shingles(batch[name].fill_null("").to_list(), salt=number + 1) for number, name in enumerate(texts)
    ]
    hashes, offsets = parts[0] if len(parts) == 1 else _interleaved(parts)
    bands = band_hashes(hashes, offsets, seed)
    block = batch["block"].to_numpy()[:, None]
    columns = {f"band_{number}": band for number, band in enumerate((bands ^ mix(block)).T)}
    pl.DataFrame({"row": batch["row"], **columns}).write_parquet(path, compression="lz4")


def _interleaved(parts: list[tuple[Hashes, NDArray[np.int64]]]) -> tuple[Hashes, NDArray[np.int64]]:
    """Shingles of several texts a row, row by row."""
    counts = np.stack([np.diff(offsets) for _, offsets in parts], axis=1)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts.sum(axis=1))])
    starts = offsets[:-1, None] + np.cumsum(counts, axis=1) - counts
    together = np.empty(offsets[-1], dtype=np.uint64)
    for number, (hashes, own) in enumerate(parts):
        places = np.repeat(starts[:, number] - own[:-1], counts[:, number]) + np.arange(own[-1])
        together[places] = hashes
    return together, offsets


def _candidates(scratch: Path) -> pl.DataFrame:
    """Pairs of rows that meet in a band: `a` < `b`."""
    files = sorted(scratch.glob("bands_*.parquet"))
    found = pl.DataFrame(schema={"a": pl.Int64, "b": pl.Int64})
    for number in range(NUM_BANDS if files else 0):
        band = pl.scan_parquet(files).select("row", band=f"band_{number}")
        met = band.filter(pl.len().over("band") > 1).sort("band", "row").collect(engine="streaming")
        found = pl.concat([found, bucket_pairs(met)]).unique()
    return found.sort("a", "b")


def bucket_pairs(met: pl.DataFrame) -> pl.DataFrame:
    """Pairs within each bucket of a band, a number linear in the rows. `met` is sorted by (band, row)."""
    buckets = met.with_columns(size=pl.len().over("band"), first=pl.col("row").first().over("band"))
    pairs = [buckets.select(a="first", b="row")]
    for step in range(1, SMALL_BUCKET):
        near = buckets.filter(pl.col("size") <= SMALL_BUCKET) if step > 1 else buckets
        same = pl.col("band") == pl.col("band").shift(step)
        pairs.append(near.select(a=pl.col("row").shift(step), b="row", same=same).filter("same").drop("same"))
    return pl.concat(pairs).filter(pl.col("a") < pl.col("b")).unique()


def _verify(
    rows: pl.LazyFrame, texts: Sequence[str], candidates: pl.DataFrame, threshold: float
) -> pl.DataFrame:
    """The candidates whose texts are truly near, each of them."""
    found = [pl.DataFrame(schema=PAIR_SCHEMA)]
    if candidates.height:
        needed = pl.concat([candidates["a"], candidates["b"]]).unique().alias("row").to_frame()
        held = rows.join(needed.lazy(), on="row", how="semi").select("row", *texts)
        documents = held.collect(engine="streaming")
        for start in range(0, candidates.height, PAIRS_AT_ONCE):
            some = candidates[start : start + PAIRS_AT_ONCE]
            similarity = _similarities(some, documents, texts)
            checked = some.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64))
            found.append(checked.filter(pl.col("similarity") >= threshold))
    return pl.concat(found)


def _similarities(pairs: pl.DataFrame, documents: pl.DataFrame, texts: Sequence[str]) -> NDArray[np.float64]:
    """Lowest Jaccard similarity over the texts of each pair; -1 where only one of the two has a text."""
    needed = pl.concat([pairs["a"], pairs["b"]]).unique().sort().alias("row").to_frame()
    held = needed.join(documents, on="row", how="left", maintain_order="left")
    places = {row: place for place, row in enumerate(held["row"])}
    left = [places[row] for row in pairs["a"]]
    right = [places[row] for row in pairs["b"]]
    lowest = np.ones(pairs.height)
    for name in texts:
        given = held[name].is_not_null().to_list()
        hashes, offsets = shingles(held[name].fill_null("").to_list())
        sets = [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            if given[a] != given[b]:
                lowest[number] = -1.0
            elif given[a]:
                lowest[number] = min(lowest[number], jaccard(sets[a], sets[b]))
    return lowest


def jaccard(a: Hashes, b: Hashes) -> float:
    """Jaccard similarity of two sets, given as sorted arrays of distinct values; two empty sets are equal."""
    common = np.intersect1d(a, b, assume_unique=True).size
    union = a.size + b.size - common
    return common / union if union else 1.0


def exact_duplicates(rows: pl.LazyFrame, key: Sequence[str]) -> pl.DataFrame:
    """Rows whose key a better row has, too: `row` and the `kept` one.

    `rows` has `row`, the key columns and `rank`: the lower, the better; ranks are distinct.
    """
    best = pl.col("row").sort_by("rank").first().over(key)
    return (
        rows.select("row", *key, "rank")
        .select("row", kept=best)
        .filter(pl.col("row") != pl.col("kept"))
        .sort("row")
        .collect(engine="streaming")
    )


def near_duplicates(pairs: pl.DataFrame, ranks: pl.DataFrame) -> pl.DataFrame:
    """Rows that are near a better row which stays: `row`, the `kept` one, their `similarity`.

    Taken in order of rank, a row stays unless it is near one that stays already. So a chain of small changes
    never removes a row that is far from all that are kept.

    Args:
        pairs: as `near_pairs` gives them
        ranks: `row`, `rank`; the lower, the better; ranks are distinct
    """
    better = (
        pairs.join(ranks.select(a="row", rank_a="rank"), on="a")
        .join(ranks.select(b="row", rank_b="rank"), on="b")
        .select(
            row=pl.when(pl.col("rank_a") < pl.col("rank_b")).then("b").otherwise("a"),
            kept=pl.when(pl.col("rank_a") < pl.col("rank_b")).then("a").otherwise("b"),
            rank=pl.max_horizontal("rank_a", "rank_b"),
            kept_rank=pl.min_horizontal("rank_a", "rank_b"),
            similarity="similarity",
        )
        .sort("rank", "kept_rank")
    )
    dropped: dict[int, tuple[int, float]] = {}
    for row, kept, similarity in better.select("row", "kept", "similarity").iter_rows():
        if row not in dropped and kept not in dropped:
            dropped[row] = (kept, similarity)
    return pl.DataFrame(
        [(row, kept, similarity) for row, (kept, similarity) in dropped.items()],
        schema={"row": pl.Int64, "kept": pl.Int64, "similarity": pl.Float64},
        orient="row",
    ).sort("row")
