"""The vectors of training pairs, out of an export and onto disk: each content of a side once."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vipolyqwen_core.contract import Side
from vipolyqwen_core.corpus.tables import VECTOR_ROWS, open_parquet, read_batches
from vipolyqwen_core.hashes import sample_keys
from vipolyqwen_core.mining.nearest import HalfVectors, Ints
from vipolyqwen_core.mining.pairs import Pairs
from vipolyqwen_core.serving.table_update import matrix


@dataclass(frozen=True, eq=False)
class DistinctVectors:
    """Unit vectors of the distinct contents of each side, on disk, and which of them each pair has.

    Shapes:
        query, target: [U, D]
        query_rows, target_rows: [R]
    """

    query: HalfVectors
    query_rows: Ints
    target: HalfVectors
    target_rows: Ints
    files: tuple[Path, ...]

    def remove(self) -> None:
        """Delete the files."""
        for file in self.files:
            file.unlink()


def read_vectors(parquet: Path, pairs: Pairs, folder: Path) -> DistinctVectors:
    """The vectors of an export, in half precision: 45 GB on disk for 11 million pairs of distinct sides.

    Raises:
        OSError: the disk has no room for them
        ValueError: the export lacks a side of a pair
    """
    order = np.argsort(pairs.keys)
    ordered = pairs.keys[order]
    found: dict[str, tuple[HalfVectors, Ints, Path]] = {}
    seen: dict[str, NDArray[np.bool_]] = {}
    with open_parquet(parquet) as file:
        dim = file.schema_arrow.field("embedding").type.list_size
    for side, content in ((Side.QUERY, pairs.query), (Side.TARGET, pairs.target)):
        distinct, number = np.unique(content, return_inverse=True)
        path = folder / f"{side.value}.f16"
        found[side.value] = _reserved(path, len(distinct), dim), number.astype(np.int64), path
        seen[side.value] = np.zeros(len(distinct), dtype=bool)
    for batch in read_batches(parquet, VECTOR_ROWS, ["sample_id", "side", "split", "embedding"]):
        rows = pa.Table.from_batches([batch])
        for name, (vectors, number, _) in found.items():
            chosen = rows.filter((pc.field("split") == "train") & (pc.field("side") == name))
            keys = sample_keys(chosen["sample_id"].to_pylist())
            places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
            known = ordered[places] == keys
            contents = number[order[places[known]]]
            vectors[contents] = matrix(chosen["embedding"])[known]
            seen[name][contents] = True
    missing = sum(int((~side).sum()) for side in seen.values())
    if missing:
        raise ValueError(f"{parquet} lacks {missing:,} sides of the training set: export anew")
    query, target = found[Side.QUERY.value], found[Side.TARGET.value]
    return DistinctVectors(query[0], query[1], target[0], target[1], (query[2], target[2]))


def _reserved(path: Path, rows: int, dim: int) -> HalfVectors:
    """An array in a new file, for which the disk has set the space aside.

    Without that, Linux ends a process by SIGBUS, and no word, where it writes to a map and the disk is full.

    Raises:
        OSError: the disk has no room for it
    """
    num_bytes = rows * dim * np.dtype(np.float16).itemsize
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            wanted = f"{error.strerror} ({num_bytes / 1e9:.2f} GB are wanted)"
            raise OSError(error.errno, wanted, str(path)) from error
    return np.memmap(path, np.float16, "r+", shape=(rows, dim))
