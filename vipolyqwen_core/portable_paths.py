"""Paths as files of a workspace spell them: relative to the file, so that a workspace can be moved or copied.

Such a path starts with `..` or `.`. A path outside the workspace stays absolute, and so does one in a file
that lies outside; the workspace is the one of this process.
"""

import os
from pathlib import Path

from vipolyqwen_core.workspace import current_workspace


def spelled(path: Path, folder: Path) -> str:
    """How a file in a folder names a path: `../../training_set`, `./model`; a hub id as it is.

    A directory has to come absolute: a relative path is taken for a hub id.
    """
    home = current_workspace().home
    place, target = folder.resolve(), path.resolve()
    if not path.is_absolute() or not place.is_relative_to(home) or not target.is_relative_to(home):
        return str(path)
    relative = os.path.relpath(target, place)
    return relative if _starts_here(relative) else f"./{relative}"


def meant(written: str, folder: Path) -> Path:
    """The path that a file in a folder names, as it is written there: `Path` would drop the `./`."""
    return Path(os.path.normpath(folder.resolve() / written)) if _starts_here(written) else Path(written)


def _starts_here(written: str) -> bool:
    """Whether a path is one relative to its file."""
    return written.split("/", 1)[0] in (".", "..")
