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
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rensa import RMinHash

from vipolyqwen_core.hashes import Hashes

NUM_BANDS = 16
BAND_ROWS = 8
"""A pair of similarity s meets in some band with probability 1 - (1 - s^8)^16: 0.994 at 0.85, 0.06 at 0.5."""
SHINGLE_CHARS = 5
BATCH_ROWS = 20_000
SMALL_BUCKET = 16
"""All pairs of a smaller bucket are compared. In a larger one, each row meets its neighbour and the first."""
SIGNATURES_AT_ONCE = 1_000
"""Texts whose shingles are in memory at once: so few that they stay in the processor's cache."""
PAIRS_AT_ONCE = 500_000
"""Candidates whose texts are in memory at once."""
COMPARED_AT_ONCE = 2**12
"""Candidates that are compared at once: a number of 12 bits, which leaves 52 bits of a hash beside it."""
UNBUFFERED = pl.QueryOptFlags(comm_subplan_elim=False)
"""For queries that put several parts of one table one below the other. Else the table is read once for all
parts, and what the later ones are to take waits in memory: 2.7 GB for 10M rows, and no faster."""

PAIR_SCHEMA = {"a": pl.Int64, "b": pl.Int64, "similarity": pl.Float64}


def comparable(text: pl.Expr) -> pl.Expr:
    """A normalised text as near duplicates are compared: lower case, line breaks folded to spaces."""
    folded = text.str.replace_all("\n\n", "\n", literal=True).str.replace_all("\n", " ", literal=True)
    return folded.str.to_lowercase()


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
    return murmur_mix(hashes[windows]), offsets


def murmur_mix(hashes: Hashes) -> Hashes:
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
    flat = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint64)
    signatures = flat.reshape(-1, NUM_BANDS, BAND_ROWS)
    bands = np.zeros(signatures.shape[:2], dtype=np.uint64)
    for row in range(BAND_ROWS):
        bands = murmur_mix(bands * np.uint64(31) + signatures[:, :, row])
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
        batches = rows.collect_batches(chunk_size=BATCH_ROWS, engine="streaming", optimizations=UNBUFFERED)
        for number, batch in enumerate(batches):
            _write_bands(batch, texts, seed, scratch / f"bands_{number:06}.parquet")
        candidates = _candidates(scratch)
        return _verify(rows, texts, candidates, threshold)
    finally:
        shutil.rmtree(scratch)


def _write_bands(batch: pl.DataFrame, texts: Sequence[str], seed: int, path: Path) -> None:
    """Signatures of a batch, as one 64-bit hash a band; rows with nothing to compare are left out."""
    batch = batch.filter(pl.any_horizontal(pl.col(name).str.len_chars() >= SHINGLE_CHARS for name in texts))
    found = [np.zeros((0, NUM_BANDS), dtype=np.uint64)]
    for some in batch.iter_slices(SIGNATURES_AT_ONCE):
        parts = [
            shingles(some[name].fill_null("").to_list(), salt=number + 1) for number, name in enumerate(texts)
        ]
        found.append(band_hashes(*(parts[0] if len(parts) == 1 else _interleaved(parts)), seed))
    bands = np.concatenate(found) ^ murmur_mix(batch["block"].to_numpy())[:, None]
    columns = {f"band_{number}": band for number, band in enumerate(bands.T)}
    pl.DataFrame({"row": batch["row"], **columns}).write_parquet(path, compression="uncompressed")


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
        band = pl.read_parquet(files, columns=["row", f"band_{number}"]).rename({f"band_{number}": "band"})
        met = band.join(repeated(band["band"]).to_frame(), on="band", how="semi").sort("band", "row")
        found = pl.concat([found, bucket_pairs(met)]).unique()
    return found.sort("a", "b")


def repeated(values: pl.Series) -> pl.Series:
    """The numbers that occur more than once: by a sort, which needs no more memory than a copy."""
    ordered = np.sort(values.to_numpy())
    return pl.Series(values.name, np.unique(ordered[1:][ordered[1:] == ordered[:-1]]), dtype=values.dtype)


def bucket_pairs(met: pl.DataFrame) -> pl.DataFrame:
    """Pairs within each bucket of a band, a number linear in the rows. `met` is sorted by (band, row)."""
    buckets = met.with_columns(size=pl.len().over("band"), first=pl.col("row").first().over("band"))
    small = buckets.filter(pl.col("size") <= SMALL_BUCKET)
    pairs = [buckets.select(a="first", b="row")]
    for step in range(1, SMALL_BUCKET):
        near = small if step > 1 else buckets
        same = pl.col("band") == pl.col("band").shift(step)
        pairs.append(near.select(a=pl.col("row").shift(step), b="row", same=same).filter("same").drop("same"))
    return pl.concat(pairs).filter(pl.col("a") < pl.col("b")).unique()


def _verify(
    rows: pl.LazyFrame, texts: Sequence[str], candidates: pl.DataFrame, threshold: float
) -> pl.DataFrame:
    """The candidates whose texts are truly near, each of them."""
    found = [pl.DataFrame(schema=PAIR_SCHEMA)]
    for some in candidates.iter_slices(PAIRS_AT_ONCE):
        needed = pl.concat([some["a"], some["b"]]).unique().sort()
        # A filter reads what it keeps; a join would hold the texts of many more rows meanwhile.
        held = rows.select("row", *texts).filter(pl.col("row").is_in(needed.implode()))
        documents = held.collect(engine="streaming", optimizations=UNBUFFERED)
        for few in some.iter_slices(COMPARED_AT_ONCE):
            similarity = _similarities(few, documents, texts)
            checked = few.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64))
            found.append(checked.filter(pl.col("similarity") >= threshold))
    return pl.concat(found)


def _similarities(pairs: pl.DataFrame, documents: pl.DataFrame, texts: Sequence[str]) -> NDArray[np.float64]:
    """Lowest Jaccard similarity over the texts of each pair; -1 where only one of the two has a text."""
    left, right = (
        pairs.select(row=side).join(documents, on="row", how="left", maintain_order="left")
        for side in ("a", "b")
    )
    lowest = np.ones(pairs.height)
    for name in texts:
        lowest[(left[name].is_null() != right[name].is_null()).to_numpy()] = -1.0
        differ = (left[name] != right[name]).fill_null(False).arg_true().to_numpy()
        some = left[name][differ].to_list(), right[name][differ].to_list()
        lowest[differ] = np.minimum(lowest[differ], jaccard(*some))
    return lowest


def jaccard(left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
    """Jaccard similarity of the 5-grams of texts, pair by pair; of two texts without any it is 1.

    Args:
        left, right: `COMPARED_AT_ONCE` texts at most
    """
    numbers = np.arange(len(left), dtype=np.uint64)
    first, second = (_numbered_grams(texts, numbers) for texts in (left, right))
    both = np.sort(np.concatenate([first, second]))
    common, of_first, of_second = (
        np.bincount((grams >> np.uint64(52)).astype(np.int64), minlength=len(left))
        for grams in (both[1:][both[1:] == both[:-1]], first, second)
    )
    union = of_first + of_second - common
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def _numbered_grams(texts: Sequence[str], numbers: Hashes) -> Hashes:
    """The distinct 5-grams of all texts: the number of the text in the upper 12 bits, then a hash."""
    hashes, offsets = shingles(texts)
    upper = np.repeat(numbers, np.diff(offsets)) << np.uint64(52)
    grams: Hashes = np.sort(upper | (hashes >> np.uint64(12)))
    first = np.ones(len(grams), dtype=bool)
    first[1:] = grams[1:] != grams[:-1]
    return grams[first]


def exact_duplicates(rows: pl.LazyFrame, key: Sequence[str]) -> pl.DataFrame:
    """Rows whose key a better row has, too: `row` and the `kept` one.

    `rows` has `row`, the key columns and `rank`: the lower, the better; ranks are distinct.
    """
    numbered = rows.select("row", *key, "rank", hash=pl.struct(*key).hash(seed=0))
    shared = repeated(numbered.select("hash").collect(engine="streaming").to_series())
    best = pl.col("row").sort_by("rank").first().over(key)
    return (
        numbered.join(shared.to_frame().lazy(), on="hash", how="semi")
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
    places = pl.concat([better["row"], better["kept"]]).unique().sort().to_numpy()
    gone = bytearray(len(places))
    losers = np.searchsorted(places, better["row"].to_numpy())
    winners = np.searchsorted(places, better["kept"].to_numpy())
    chosen = []
    for number, (loser, winner) in enumerate(zip(losers.tolist(), winners.tolist(), strict=True)):
        if not gone[loser] and not gone[winner]:
            gone[loser] = 1
            chosen.append(number)
    return better[chosen].select("row", "kept", "similarity").sort("row")
