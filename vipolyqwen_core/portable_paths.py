"""Paths as files of a workspace spell them: relative to the file, so that a workspace can be moved or copied.

A path outside the workspace stays absolute, and so does one in a file that lies in no workspace.
"""

import os
from pathlib import Path

from vipolyqwen_core.workspace import Workspace

OWNED = ("runs", "evaluations", "curated", "tagged", "validated", "training_set")
"""Folders of a workspace that hold such files."""


def spelled(path: Path, folder: Path) -> str:
    """How a file in a folder names a path: `../../training_set`, or as it is where it is relative already."""
    if not path.is_absolute():
        return str(path)
    workspace = surrounding_workspace(folder)
    if workspace is None or not path.resolve().is_relative_to(workspace.home):
        return str(path)
    return os.path.relpath(path.resolve(), folder.resolve())


def meant(written: str, folder: Path) -> Path:
    """The path that a file in a folder names; what does not start with `..` or `.` stays as it is."""
    path = Path(written)
    if path.parts[:1] not in ((), ("..",)):
        return path
    return Path(os.path.normpath(folder.resolve() / path))


def surrounding_workspace(folder: Path) -> Workspace | None:
    """The workspace that a folder of a run, an evaluation or a source lies in; None: it lies elsewhere."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if place.name in OWNED:
            return Workspace(place.parent)
    return None
