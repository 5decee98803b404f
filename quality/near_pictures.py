"""Near pictures: the same picture in another size, compression or format.

A perceptual hash only proposes: on synthetic scenes and scanned pages it puts a quarter of different pictures
close together. What decides is a comparison of thumbnails in which the largest local difference counts, since
pages of one form, or charts of one style, differ in few places.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, combinations

import numpy as np
import polars as pl
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quality.duplicates import SMALL_BUCKET, bucket_pairs, repeated
from vipolyqwen_core.corpus.pictures import taking_turns
from vipolyqwen_core.usable_cores import usable_cores

PART_BITS = (9, 9, 9, 9, 9, 9, 10)
"""Bits of the parts of a hash."""
PARTS_IN_COMMON = 3
"""Hashes that differ in no more than four bits have so many of the seven parts in common. These have 27 bits:
few pictures share them by chance, and buckets stay small where there are millions of pictures."""
MAX_HASH_BITS = 6
THUMBNAIL_PIXELS = 512
MAX_ASPECT_CHANGE = 0.02
CELL_PIXELS = 8
LIGHT = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MAX_LIGHT_DIFFERENCE = 20.0
MAX_COLOUR_DIFFERENCE = 36.0
"""Mean differences of a cell, of values in [0, 255]. Measured on pages, formulas, drawings and scenes: JPEG
of quality 60 stays below, half the size mostly; a word replaced on a page is above 22 in light, another
colour of a shape above 80 in some channel."""
PAIRS_AT_ONCE = 256

ReadPictures = Callable[[Sequence[int]], Sequence[bytes]]


def near_pictures(pictures: pl.DataFrame, read: ReadPictures) -> pl.DataFrame:
    """Pairs of pictures that look the same: `a` < `b`, numbers of pictures.

    Args:
        pictures: `picture` (the number of the row, from 0), `phash` (16 hex digits), `width`, `height`
        read: gives the bytes of pictures by number
    """
    proposed = propose(pictures)
    confirmed = []
    with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes without the interpreter's lock
        for some in proposed.iter_slices(PAIRS_AT_ONCE):
            needed = pl.concat([some["a"], some["b"]]).unique().sort().to_list()
            thumbnails = dict(zip(needed, threads.map(thumbnail, read(needed)), strict=True))
            alike = threads.map(
                look_alike, *([thumbnails[picture] for picture in some[side]] for side in "ab")
            )
            confirmed += some.filter(pl.Series(alike, dtype=pl.Boolean)).rows()
    return pl.DataFrame(confirmed, schema={"a": pl.Int64, "b": pl.Int64}, orient="row")


def propose(pictures: pl.DataFrame) -> pl.DataFrame:
    """Pairs of pictures with close perceptual hashes and the same shape: `a` < `b`."""
    bits = pl.col("phash").str.to_integer(base=16, dtype=pl.UInt64)
    facts = pictures.select(row="picture", bits=bits, aspect=pl.col("width") / pl.col("height"))
    ends = accumulate(PART_BITS)
    parts = [(2**num_bits - 1) << (end - num_bits) for num_bits, end in zip(PART_BITS, ends, strict=True)]
    shape = (pl.col("aspect").log() / MAX_ASPECT_CHANGE).round()
    same = facts.select("row", band="bits", shape=shape).sort("band", "row")
    found = [_close(bucket_pairs(same.select("row", "band")), facts)]
    is_many = pl.len().over("band") > SMALL_BUCKET
    is_first = pl.struct("band", "shape").is_first_distinct()
    apart = same.filter(~is_many | is_first)  # the first of many of a shape stands for them
    for common in combinations(parts, PARTS_IN_COMMON):
        bands = apart.select("row", band=pl.col("band") & pl.lit(sum(common), dtype=pl.UInt64))
        met = bands.join(repeated(bands["band"]).to_frame(), on="band", how="semi").sort("band", "row")
        found.append(_close(bucket_pairs(met), facts))
    pairs = pl.concat(found).unique()
    return pl.concat([pairs, _close(_next_in_crowds(pairs, len(facts)), facts)]).unique().sort("a", "b")


def _next_in_crowds(pairs: pl.DataFrame, num_pictures: int) -> pl.DataFrame:
    """Each picture and the next one, among many that the pairs link: a copy often follows its original."""
    ends = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), ends), shape=(num_pictures, num_pictures))
    _, crowds = connected_components(graph, directed=False)
    rows = pl.DataFrame({"row": np.arange(num_pictures), "crowd": crowds})
    rows = rows.filter(pl.len().over("crowd") > SMALL_BUCKET).sort("crowd", "row")
    is_next = pl.col("crowd") == pl.col("crowd").shift(1)
    return rows.select(a=pl.col("row").shift(1), b="row", is_next=is_next).filter("is_next").drop("is_next")


def _close(pairs: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """The pairs whose hashes and shapes are close."""
    a, b = facts[pairs["a"]], facts[pairs["b"]]
    distance = (a["bits"] ^ b["bits"]).bitwise_count_ones()
    stretched = (a["aspect"] / b["aspect"]).log().abs()
    return pairs.filter((distance <= MAX_HASH_BITS) & (stretched <= MAX_ASPECT_CHANGE))


def thumbnail(data: bytes) -> Image.Image:
    """The picture in RGB, neither side longer than `THUMBNAIL_PIXELS`."""
    with taking_turns() as wait_for_turn, Image.open(io.BytesIO(data)) as image:
        wait_for_turn(image.width * image.height)
        size = (min(image.width, THUMBNAIL_PIXELS), min(image.height, THUMBNAIL_PIXELS))
        return _resized(image.convert("RGB"), size)


def look_alike(a: Image.Image, b: Image.Image) -> bool:
    """Whether two thumbnails show the same: no cell differs much."""
    light, colour = differences(a, b)
    return light <= MAX_LIGHT_DIFFERENCE and colour <= MAX_COLOUR_DIFFERENCE


def differences(a: Image.Image, b: Image.Image) -> tuple[float, float]:
    """Difference of two thumbnails in the cell that differs most: in light, and in the channel most apart."""
    size = (min(a.width, b.width), min(a.height, b.height))
    grid = (max(size[0] // CELL_PIXELS, 1), max(size[1] // CELL_PIXELS, 1))
    left, right = (np.asarray(_resized(_resized(image, size), grid), dtype=np.float32) for image in (a, b))
    cells = left - right
    return float(np.abs(cells @ LIGHT).max()), float(np.abs(cells).max())


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BOX)
