"""Paths as files of a workspace spell them: relative to the file, so that a workspace can be moved or copied.

A path outside the workspace stays absolute, and so does one in a file
that lies outside; the workspace is the one of this process.
"""

import os
from pathlib import Path

from vipolyqwen_core.workspace import current_workspace


def spelled(path: Path, folder: Path) -> str:
    """How a file in a folder names a path: `../../training_set`, or as it is where it is relative already."""
    home = current_workspace().home
    place, target = folder.resolve(), path.resolve()
    if not path.is_absolute() or not place.is_relative_to(home) or not target.is_relative_to(home):
        return str(path)
    return os.path.relpath(target, place)


def meant(written: str, folder: Path) -> Path:
    """The path that a file in a folder names; what does not start with `..` or `.` stays as it is."""
    path = Path(written)
    if path.parts[:1] not in ((), ("..",)):
        return path
    return Path(os.path.normpath(folder.resolve() / path))
