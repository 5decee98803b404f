"""Ids of samples as numbers: 16 bytes instead of the 48 or more of their spelling, in the same order."""

import numpy as np
import polars as pl
import pyarrow as pa

ID_NUMBER = pl.UInt128()
ID_DIGITS = 32


def id_number(spelled: pl.Expr) -> pl.Expr:
    """The number that the 32 hex digits of an id spell; null where it is something else."""
    return spelled.str.decode("hex", strict=False).bin.reinterpret(dtype=ID_NUMBER, endianness="big")


def spell(numbers: pl.Series) -> pl.Series:
    """The ids that numbers stand for: 32 hex digits each. No number may be null."""
    assert numbers.null_count() == 0, f"{numbers.null_count()} ids are null"
    number = pl.col(numbers.name)
    halves = numbers.to_frame().select(
        upper=(number // 2**64).cast(pl.UInt64), lower=(number % 2**64).cast(pl.UInt64)
    )
    digits = np.ascontiguousarray(halves.to_numpy(), dtype=">u8").tobytes().hex().encode()
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * ID_DIGITS
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(digits)]
    spelled = pl.from_arrow(pa.Array.from_buffers(pa.large_string(), len(numbers), buffers))
    assert isinstance(spelled, pl.Series)
    return spelled.alias(numbers.name)
