"""64-bit hashes of rows, so that millions of rows can be compared in memory."""

from hashlib import blake2b
from typing import Final

import numpy as np
import pyarrow as pa

from vipolyqwen_core.hashes import Hashes

KEY: Final = ("sample_id", "side")
"""Columns that tell what a vector is of: equal key, equal vector."""
IDENTITY: Final = (*KEY, "split", "origin", "source", "language")
"""Columns that make a row of the table right: a pair's content is in its id, the rest may change."""


def row_hashes(rows: pa.Table, columns: tuple[str, ...]) -> Hashes:
    """The hash of some text columns of each of n rows, [n]."""
    values = zip(*(rows[column].to_pylist() for column in columns), strict=True)
    digests = b"".join(blake2b("\x1f".join(row).encode(), digest_size=8).digest() for row in values)
    return np.frombuffer(digests, dtype=np.uint64)
