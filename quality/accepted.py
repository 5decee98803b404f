"""The accepted version of a source: the last one whose checks passed, which trains.

validated/<source>/accepted.json    {"version": ...}, the name of a folder beside it
"""

from pathlib import Path
from typing import Final

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


def accepted_pictures(folder: Path) -> int | None:
    """The version of the image store that the accepted version of a source points into; None: no pictures."""
    stage = accepted_stage(folder)
    images = None if stage is None else stage.details.get("images")
    return None if images is None else int(images["version"])


def judged_folder(folder: Path, judgement: StageSummary) -> Path:
    """The folder of the version that the last judgement of a source speaks of, accepted or not."""
    return folder / (judgement.data_version if judgement.details["accepted"] else CANDIDATE)


def accepted_stages(source: str, workspace: Workspace) -> list[Path]:
    """Folders with the ledger and the summary of curation, tagging and validation of the accepted version.

    The first two may have run again since, and what they made then may not have been accepted.
    """
    return stages_of(accepted_folder(workspace.validated(source)), source, workspace)


def stages_of(accepted: Path | None, source: str, workspace: Workspace) -> list[Path]:
    """As `accepted_stages`, of the version in a folder; None: as the stages are now."""
    now = {"curated": workspace.curated(source), "tagged": workspace.tagged(source)}
    if accepted is None:
        return list(now.values())
    # Versions that were accepted before these were kept have none.
    before = [kept if (kept := accepted / stage).is_dir() else folder for stage, folder in now.items()]
    return [*before, accepted]
