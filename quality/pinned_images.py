"""Which versions of a source's image store something still points into; the others go after a while.

Every curation that changes something writes all pictures of its source as a new version. Pinned are the ones
of the curated tables, of the validated versions that are kept, and of the training set.

    images/<source>.unpinned.json    when each version that waits for its end was first seen without a pin
"""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from vipolyqwen_core.corpus.image_store import read_pins, remove_versions, replaced_versions
from vipolyqwen_core.corpus.tables import read_json, read_stage
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

KEPT_UNPINNED: Final = timedelta(days=14)
"""How long a version stays after nothing points into it any more: a training or an export that runs may
still read what the training set of its start pinned."""


def remove_unpinned(source: str, workspace: Workspace) -> list[int]:
    """Remove the versions of a source's image store that nothing has pointed into for long; which they were.

    The time of a version starts when it is first seen here without a pin, and anew where it was pinned again,
    or where that moment lies in the future: the clock was set back since.
    """
    path, now = workspace.images(source), datetime.now(UTC)
    waiting = _waiting_since(path)
    unpinned = set(replaced_versions(path)) - pinned_versions(source, workspace)
    since = {version: min(waiting.get(version, now), now) for version in sorted(unpinned)}
    if since != waiting:
        written = {str(version): moment.isoformat() for version, moment in since.items()}
        with written_aside(_waiting_file(path)) as aside:
            aside.write_text(json.dumps(written, indent=2), encoding="utf-8")
    removed = [version for version, moment in since.items() if now - moment >= KEPT_UNPINNED]
    if removed:
        remove_versions(path, removed)
        logger.info("%s: removed versions %s of its pictures", source, ", ".join(map(str, removed)))
    return removed


def _waiting_file(path: Path) -> Path:
    return path.with_suffix(".unpinned.json")


def _waiting_since(path: Path) -> dict[int, datetime]:
    """When each version was first seen without a pin."""
    file = _waiting_file(path)
    if not file.is_file():
        return {}
    found = read_json(file)
    return {int(version): datetime.fromisoformat(moment) for version, moment in found.items()}


def pinned_versions(source: str, workspace: Workspace) -> set[int]:
    """Versions of a source's image store that a table points into."""
    validated = workspace.validated(source)
    folders = [workspace.curated(source), validated, *(path for path in validated.glob("*") if path.is_dir())]
    stages = [stage for stage in map(read_stage, folders) if stage is not None]
    pins: list[dict[str, Any] | None] = [stage.details.get("images") for stage in stages]
    if (workspace.training_set / "images.json").is_file():
        pins.append(read_pins(workspace.training_set).get(source))
    return {int(pin["version"]) for pin in pins if pin is not None}
