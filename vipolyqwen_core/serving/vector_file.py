"""Vectors in a NumPy file, which appears whole or not at all."""

from pathlib import Path

import numpy as np

from vipolyqwen_core.serving.encoder import Vectors
from vipolyqwen_core.written_aside import written_aside


def write_vectors(path: Path, vectors: Vectors) -> None:
    """Write a `.npy`; a pipe or a device takes it as it comes, and a link stays one.

    Shapes:
        vectors: [n, D]
    Raises:
        OSError: it cannot be written, for example because the disk is full
    """
    if path.exists() and not path.is_file():
        _write(path, vectors)
        return
    with written_aside(path.resolve()) as aside:
        _write(aside, vectors)


def _write(path: Path, vectors: Vectors) -> None:
    """`np.save` says of a full disk only how many numbers were written, and knows no pipes."""
    rows = np.ascontiguousarray(vectors)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.data)
