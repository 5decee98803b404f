"""Near pictures: the same picture in another size, compression or format.

A perceptual hash only proposes: on synthetic scenes and scanned pages it puts a quarter of different pictures
close together. What decides is a comparison of thumbnails in which the largest local difference counts, since
pages of one form, or charts of one style, differ in few places.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from PIL import Image

from quality.duplicates import bucket_pairs

HASH_PARTS = 4
"""Hashes that differ in fewer bits than there are parts have a part in common."""
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
        pictures: `picture` (a number), `phash` (16 hex digits), `width`, `height`
        read: gives the bytes of pictures by number
    """
    proposed = propose(pictures)
    confirmed = []
    for start in range(0, proposed.height, PAIRS_AT_ONCE):
        some = proposed[start : start + PAIRS_AT_ONCE]
        needed = pl.concat([some["a"], some["b"]]).unique().sort().to_list()
        thumbnails = dict(zip(needed, map(thumbnail, read(needed)), strict=True))
        confirmed += [(a, b) for a, b in some.iter_rows() if look_alike(thumbnails[a], thumbnails[b])]
    return pl.DataFrame(confirmed, schema={"a": pl.Int64, "b": pl.Int64}, orient="row")


def propose(pictures: pl.DataFrame) -> pl.DataFrame:
    """Pairs of pictures with close perceptual hashes and the same shape: `a` < `b`."""
    digits = 16 // HASH_PARTS
    pairs = [pl.DataFrame(schema={"a": pl.Int64, "b": pl.Int64})]
    for part in range(HASH_PARTS):
        bands = pictures.select(
            row="picture", band=pl.col("phash").str.slice(part * digits, digits).hash(seed=0)
        )
        pairs.append(bucket_pairs(bands.filter(pl.len().over("band") > 1).sort("band", "row")))
    bits = pl.col("phash").str.to_integer(base=16, dtype=pl.UInt64)
    facts = pictures.select("picture", bits=bits, aspect=pl.col("width") / pl.col("height"))
    found = (
        pl.concat(pairs)
        .unique()
        .join(facts.rename({"picture": "a", "bits": "bits_a", "aspect": "aspect_a"}), on="a")
        .join(facts.rename({"picture": "b", "bits": "bits_b", "aspect": "aspect_b"}), on="b")
    )
    distance = (pl.col("bits_a") ^ pl.col("bits_b")).bitwise_count_ones()
    stretched = (pl.col("aspect_a") / pl.col("aspect_b")).log().abs()
    return (
        found.filter(distance <= MAX_HASH_BITS, stretched <= MAX_ASPECT_CHANGE)
        .select("a", "b")
        .sort("a", "b")
    )


def thumbnail(data: bytes) -> Image.Image:
    """The picture in RGB, neither side longer than `THUMBNAIL_PIXELS`."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    size = (min(rgb.width, THUMBNAIL_PIXELS), min(rgb.height, THUMBNAIL_PIXELS))
    return _resized(rgb, size)


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
