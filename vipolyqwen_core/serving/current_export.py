"""Which export is in use: `current.json` beside the exported tables. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass
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
        with written_aside(workspace.exports / "current.json") as aside:
            aside.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


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
    return CurrentExport(**json.loads(path.read_text(encoding="utf-8")))


def current_model(workspace: Workspace) -> Path:
    """Directory of the model that the export in use was made with.

    Raises:
        ValueError: nothing was exported yet, or that model is gone
    """
    model = Path(read_current(workspace).model)
    if not (model / "config.json").is_file():
        raise ValueError(f"the model of the exported table is gone: {model}")
    return model
