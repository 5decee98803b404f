"""A full disk in words: the libraries that meet one say neither which it is nor what to do."""

import shutil
import tempfile
from pathlib import Path

from vipolyqwen_core.workspace import Workspace

SIGNS = ("No space left on device", "Disk quota exceeded", "database or disk is full", "disk I/O error")
"""Words by which an error of a full disk is known: the system's, then SQLite's."""
GOES_ON = "the same command goes on"
"""What helps where there is room again; said once, by whoever knows what is kept."""
FREE = "free now: "
"""How the free space begins in a message: where it stands already, nothing is added again."""
SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what processes share: in a container 64 MB, unless somebody asked for more."""


def sign_of_full_disk(error: BaseException) -> str:
    """The words in which an error tells of a full disk; empty where it tells of none."""
    return next((sign for sign in SIGNS if sign in str(error)), "")


def told_of_full_disk(error: BaseException, workspace: Workspace) -> str:
    """What to add to the message of an error; empty where no disk is full, or where it was added already.

    A file that did not fit is removed at once, so much may be free again by now.
    """
    if not sign_of_full_disk(error) or FREE in str(error):
        return ""
    folders = [*_folder_elsewhere(error, workspace), workspace.home, *_temporary_folder(), SHARED_MEMORY]
    free = [
        f"{shutil.disk_usage(folder).free / 1e9:.2f} GB in {folder}" for folder in folders if folder.is_dir()
    ]
    helps = "" if GOES_ON in str(error) else f". Make room: {GOES_ON}"
    return f"; {FREE}{', '.join(free)}{helps}"


def _folder_elsewhere(error: BaseException, workspace: Workspace) -> list[Path]:
    """Where the file lies that an error names; empty where that is the workspace, or it names none."""
    name = error.filename if isinstance(error, OSError) else None
    folder = Path(name).absolute().parent if isinstance(name, str) else workspace.home
    return [] if folder.is_relative_to(workspace.home) else [folder]


def _temporary_folder() -> list[Path]:
    """Where temporary files go; empty where that is full, too: Python tries, and finds no such folder."""
    try:
        return [Path(tempfile.gettempdir())]
    except FileNotFoundError:
        return []
