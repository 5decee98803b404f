"""Keeps freed memory for its next use: on a CPU, fresh pages take time that computing could have."""

import ctypes
import sys
from typing import Final

MALLOPT_TRIM_THRESHOLD: Final = -1
MALLOPT_MMAP_THRESHOLD: Final = -3
LARGEST_MMAP_THRESHOLD: Final = 32 * 2**20
"""glibc accepts no larger one: larger blocks are mapped anew each time in any case."""


def keep_freed_memory(most_bytes: int) -> None:
    """Let each arena of glibc keep so much of what was freed in it; without glibc nothing happens.

    By default glibc hands tensors of a few MB back to the system when they are freed, and gets fresh pages,
    which have to be zeroed, for the next ones.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(MALLOPT_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(MALLOPT_TRIM_THRESHOLD, most_bytes)
