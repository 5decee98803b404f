"""Which export is in use: `current.json` beside the exported tables. Imports nothing heavy.

Paths below the workspace are written relative to it, so that a workspace can be moved or copied.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vipolyqwen_core.corpus.tables import written_aside
from vipolyqwen_core.workspace import Workspace


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

    def write(self, workspace: Workspace) -> None:
        """Make this the export in use."""
        written = replace(
            self, model=_from_home(self.model, workspace), parquet=_from_home(self.parquet, workspace)
        )
        with written_aside(workspace.exports / "current.json") as aside:
            aside.write_text(json.dumps(asdict(written), indent=2), encoding="utf-8")


def _from_home(path: str, workspace: Workspace) -> str:
    place = Path(path)
    return str(place.relative_to(workspace.home)) if place.is_relative_to(workspace.home) else path


def read_current(workspace: Workspace) -> CurrentExport:
    """The export in use.

    Raises:
        ValueError: nothing was exported yet
    """
    path = workspace.exports / "current.json"
    if not path.is_file():
        raise ValueError(
            f"nothing was exported yet: {path} does not exist; run the factory or `export` first"
        )
    found = CurrentExport(**json.loads(path.read_text(encoding="utf-8")))
    # a path that is absolute stays what it is
    model, parquet = (str(workspace.home / written) for written in (found.model, found.parquet))
    return replace(found, model=model, parquet=parquet)


def current_model(workspace: Workspace) -> Path:
    """Directory of the model that the export in use was made with.

    Raises:
        ValueError: nothing was exported yet, or that model is gone
    """
    model = Path(read_current(workspace).model)
    if not (model / "config.json").is_file():
        raise ValueError(f"the model of the exported table is gone: {model}")
    return model
