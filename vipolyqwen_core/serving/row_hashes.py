"""64-bit hashes of rows, so that millions of rows can be compared in memory, and look-up among them."""

from hashlib import blake2b
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

KEY: Final = ("sample_id", "side")
"""What a row is of: equal key, equal vector."""
IDENTITY: Final = (*KEY, "split", "origin", "source", "language")
"""What makes a row right: the content of a pair is in its id, the rest may change around it."""


def row_hashes(rows: pa.Table, columns: tuple[str, ...]) -> Hashes:
    """The hash of some text columns of each row."""
    values = zip(*(rows[column].to_pylist() for column in columns), strict=True)
    digests = b"".join(blake2b("\x1f".join(row).encode(), digest_size=8).digest() for row in values)
    return np.frombuffer(digests, dtype=np.uint64)


def is_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among sorted ones. `np.isin` would sort the millions anew for each block."""
    if len(known) == 0:
        return np.zeros(hashes.shape, dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)
