"""Near pictures among many: how many planted copies are proposed, in what time and memory.

Hashes as pictures have them, without the pictures: of 2,000 layouts, each bit the sign of the layout's value
and of one of the picture's own, so that hashes of one layout share much. A tenth of them, 20,000 at most, are
copies of others with four bits flipped, the most that are sure to be proposed.
"""

import numpy as np
import polars as pl

from quality.near_pictures import propose
from tests.benchmarks.measure import measure

SIZES = 200_000, 1_000_000, 3_000_000
NUM_LAYOUTS = 2_000
MOST_PLANTED = 20_000
FLIPPED_BITS = 4
AT_ONCE = 100_000


def hashes_of_layouts(count: int, random: np.random.Generator) -> np.ndarray:
    """Perceptual hashes of pictures that share their layouts. Shape: [count] uint64."""
    layouts = random.normal(size=(NUM_LAYOUTS, 64)).astype(np.float32)
    parts = []
    for start in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - start)
        values = layouts[random.integers(0, NUM_LAYOUTS, some)]
        values += random.normal(size=(some, 64)).astype(np.float32)
        bits = values > np.median(values, axis=1, keepdims=True)
        parts.append(np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64))
    return np.concatenate(parts)


def propose_among(count: int) -> tuple[int, float]:
    """Pairs that are proposed among so many pictures, and the share of the planted ones that are."""
    random = np.random.default_rng(0)
    planted = min(count // 10, MOST_PLANTED)
    hashes = hashes_of_layouts(count - planted, random)
    copied = random.choice(len(hashes), planted, replace=False)
    flipped = np.zeros(planted, dtype=np.uint64)
    places = np.argsort(random.random((planted, 64)), axis=1)[:, :FLIPPED_BITS].astype(np.uint64)
    for place in places.T:
        flipped ^= np.uint64(1) << place
    every = np.concatenate([hashes, hashes[copied] ^ flipped])
    pictures = pl.DataFrame(
        {"picture": np.arange(count), "phash": [f"{value:016x}" for value in every.tolist()]}
    )
    proposed = propose(pictures.with_columns(width=640, height=480))
    wanted = pl.DataFrame({"a": copied, "b": np.arange(len(hashes), count)})
    return proposed.height, wanted.join(proposed, on=["a", "b"], how="semi").height / planted


def run() -> list[str]:
    """Recall of what is planted, pairs a picture, seconds and memory, by number of pictures."""
    lines = [
        "| pictures | copies proposed | pairs proposed, a picture | CPU µs a picture | seconds | peak GB |",
        "| --- " * 6 + "|",
    ]
    for count in SIZES:
        cost = measure(propose_among, count)
        num_proposed, recall = cost.value
        lines.append(
            f"| {count:,} | {recall:.4f} | {num_proposed / count:.3f} | {cost.cpu_seconds / count * 1e6:.1f}"
            f" | {cost.seconds:.0f} | {cost.peak_gb:.2f} |"
        )
    return [*lines, "", "Seconds, CPU and memory include the making of the hashes."]
