"""Which export is in use: `current.json`. Imports neither PyTorch nor LanceDB.

The file lies in the folder of the table that it describes, so that one rename swaps in both: whenever a
process is killed, a table never stands beside the name of another's model. `exports/current.json` is a link
to it. Paths below the workspace are written relative to it, so that a workspace can be moved or copied.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vipolyqwen_core.corpus.tables import read_json
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

CURRENT_FILE: Final = "current.json"
VECTORS_FILE: Final = "embeddings.parquet"
"""Vectors of a version, in its folder."""
STAGING: Final = "staging"
"""Folder of a table that is still being made, below the folder of its version."""
LOCK_FILE: Final = ".lock"
"""Locked while an export works; among the folders of versions, none of which begins with a dot."""


@dataclass(frozen=True)
class CurrentExport:
    """The export that search reads."""

    model_version: str
    """Registry version that made the vectors."""
    model: str
    """Its model directory."""
    model_digest: str
    """Hash of its files."""
    rows: int
    """Rows of the table."""
    parquet: str
    """The same rows as Parquet."""

    def write(self, folder: Path, workspace: Workspace) -> None:
        """Write it into the folder of its table: the one in use, or one that will be swapped in."""
        written = replace(
            self, model=_from_home(self.model, workspace), parquet=_from_home(self.parquet, workspace)
        )
        with written_aside(folder / CURRENT_FILE) as aside:
            aside.write_text(json.dumps(asdict(written), indent=2), encoding="utf-8")

    def model_directory(self) -> Path:
        """Directory of the model that made the vectors.

        Raises:
            ValueError: it is gone
        """
        model = Path(self.model)
        if not (model / "config.json").is_file():
            raise ValueError(
                f"the model of the exported table is gone: {model}; bring it back, or let "
                "`vipolyqwen rollback VERSION` fetch that version from the registry"
            )
        return model


def link_current(workspace: Workspace) -> None:
    """Let `exports/current.json` show the file that lies with the table in use, whichever is swapped in."""
    link = workspace.exports / CURRENT_FILE
    if not link.is_symlink():
        with written_aside(link) as aside:
            aside.symlink_to(Path(workspace.lancedb.name) / CURRENT_FILE)


def refuse_without_links(workspace: Workspace) -> None:
    """Refuse a workspace on a file system without symbolic links, before hours of work and not after.

    Raises:
        ValueError: it has none, like some shares of a network
    """
    workspace.home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=workspace.home, prefix=".links_") as folder:
        try:
            (Path(folder) / CURRENT_FILE).symlink_to(CURRENT_FILE)
        except OSError as error:
            raise ValueError(
                f"no symbolic link can be made in {workspace.home} ({error.strerror}), and the exported "
                "table needs one: choose a workspace on another file system (--home, VIPOLYQWEN_HOME)"
            ) from error


def _from_home(path: str, workspace: Workspace) -> str:
    place = Path(path)
    return str(place.relative_to(workspace.home)) if place.is_relative_to(workspace.home) else path


def read_current(workspace: Workspace) -> CurrentExport:
    """The export in use.

    Raises:
        ValueError: nothing was exported yet
    """
    path = workspace.exports / CURRENT_FILE
    if not path.is_file():
        raise ValueError(
            f"nothing was exported yet: {path} does not exist; run the factory or `export` first"
        )
    found = CurrentExport(**read_json(path))
    # a path that is absolute stays what it is
    model, parquet = (str(workspace.home / written) for written in (found.model, found.parquet))
    return replace(found, model=model, parquet=parquet)
