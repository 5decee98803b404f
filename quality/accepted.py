"""The accepted version of a source: the last one whose checks passed, which trains.

validated/<source>/accepted.json    {"version": ...}, the name of a folder beside it
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vipolyqwen_core.corpus.tables import StageSummary, read_json, read_stage
from vipolyqwen_core.workspace import Workspace

CANDIDATE: Final = "candidate"
"""Folder of a version until it is accepted; one that was refused stays there."""


def accepted_folder(folder: Path) -> Path | None:
    """The folder of the accepted version of a source; None: no version was accepted yet."""
    named = folder / "accepted.json"
    if not named.is_file():
        return None
    return folder / str(read_json(named)["version"])


def accepted_stage(folder: Path) -> StageSummary | None:
    """The summary of the accepted version of a source; None: no version was accepted yet."""
    version = accepted_folder(folder)
    return None if version is None else read_stage(version)


def accepted_pictures(folder: Path) -> str | int | None:
    """The pictures that the accepted version of a source points to, as `pictures_identity`."""
    stage = accepted_stage(folder)
    return None if stage is None else pictures_identity(stage.details.get("images"))


def pictures_identity(images: Mapping[str, Any] | None) -> str | int | None:
    """What tells a version of an image store (its pin, None: no pictures) from others.

    Its number alone does not, since a store that was deleted counts from 1 again. Stores that were written
    before they had a uuid are known by their number alone.
    """
    return None if images is None else images.get("uuid") or int(images["version"])


def judged_folder(folder: Path, judgement: StageSummary) -> Path:
    """The folder of the version that the last judgement of a source speaks of, accepted or not."""
    return folder / (judgement.data_version if judgement.details["accepted"] else CANDIDATE)


def stages_of(accepted: Path, source: str, workspace: Workspace) -> list[Path]:
    """Folders with the ledger and the summary of curation, tagging and validation of an accepted version.

    The first two may have run again since, and what they made then may not have been accepted.

    Args:
        accepted: the folder of the version
    """
    now = {"curated": workspace.curated(source), "tagged": workspace.tagged(source)}
    # Versions that were accepted before these were kept have none.
    before = [kept if (kept := accepted / stage).is_dir() else folder for stage, folder in now.items()]
    return [*before, accepted]
