"""Arrays of 64-bit hashes: keys of samples, look-up among many, and mixing."""

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

KEY_DIGITS = 16
"""Hex digits of a sample id that make its 64-bit key."""


def sample_keys(sample_ids: list[str]) -> Hashes:
    """The 64-bit key of each sample id: its first 16 hex digits."""
    digits = "".join([sample_id[:KEY_DIGITS] for sample_id in sample_ids])
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)


def splitmix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: equal inputs give equal outputs, close ones unrelated outputs (Steele 2014)."""
    mixed = values.copy()
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def is_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which of n hashes are among sorted ones, [n] bool. `np.isin` would sort millions for each block."""
    if len(known) == 0:
        return np.zeros(hashes.shape, dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)
