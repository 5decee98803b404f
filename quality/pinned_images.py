"""Which versions of a source's image store something still points into; the others go after a while.

Every curation that changes something writes all pictures of its source as a new version. Pinned are the ones
of the curated tables, of the validated versions that are kept, and of the training set.
"""

import json
import logging
from datetime import timedelta
from typing import Any, Final

from vipolyqwen_core.corpus.image_store import remove_versions
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

logger = logging.getLogger(__name__)

KEPT_UNPINNED: Final = timedelta(days=14)
"""A training or an export that runs may still read what the training set of its start pinned."""


def remove_unpinned(source: str, workspace: Workspace) -> list[int]:
    """Remove old versions of a source's image store that nothing points into; which they were."""
    removed = remove_versions(workspace.images(source), pinned_versions(source, workspace), KEPT_UNPINNED)
    if removed:
        logger.info("%s: removed versions %s of its pictures", source, ", ".join(map(str, removed)))
    return removed


def pinned_versions(source: str, workspace: Workspace) -> set[int]:
    """Versions of a source's image store that a table points into."""
    validated = workspace.validated(source)
    folders = [workspace.curated(source), validated, *(path for path in validated.glob("*") if path.is_dir())]
    stages = [stage for stage in map(read_stage, folders) if stage is not None]
    pins: list[dict[str, Any] | None] = [stage.details.get("images") for stage in stages]
    training = workspace.training_set / "images.json"
    if training.is_file():
        pins.append(json.loads(training.read_text(encoding="utf-8")).get(source))
    return {int(pin["version"]) for pin in pins if pin is not None}
