"""Pruning: what each retraining leaves behind and nothing reads again.

A finished run is never resumed, so its checkpoints serve nobody: its model lies beside them. Vectors of model
versions before the one in use only spare a rollback the encoding. Models, results, reports and the registry
stay, and so does what an interrupted run needs to go on.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vipolyqwen_core.file_lock import is_locked
from vipolyqwen_core.serving.current_export import (
    CURRENT_FILE,
    LOCK_FILE,
    STAGING,
    VECTORS_FILE,
    read_current,
)
from vipolyqwen_core.training.result import CHECKPOINTS_FOLDER, MODEL_FOLDER, RESULT_FILE
from vipolyqwen_core.workspace import Workspace

EARLIER_EXPORTS: Final = 1
"""Versions beside the one in use whose vectors stay: the newest, to which a rollback most likely goes."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder of the workspace."""

    path: Path
    what: str
    num_bytes: int
    """Of its files; without what a file system adds."""


def leftovers(workspace: Workspace) -> list[Leftover]:
    """What nothing reads again.

    Raises:
        ValueError: what names the export in use is damaged
    """
    return [
        *(
            _leftover(run / CHECKPOINTS_FOLDER, "checkpoints of a finished run")
            for run in _runs_with_checkpoints(workspace)
            if _is_finished(run)
        ),
        *(_leftover(path, "vectors of an earlier version") for path in _earlier_vectors(workspace)),
    ]


def unfinished(workspace: Workspace) -> list[Leftover]:
    """What a run or an export can go on from: only a person knows whether anybody will repeat it."""
    return [
        *(
            _leftover(
                run / CHECKPOINTS_FOLDER, "of a run that has not finished: delete it if nobody will resume it"
            )
            for run in _runs_with_checkpoints(workspace)
            if not _is_finished(run)
        ),
        *(
            _leftover(
                table, "of an export that has not finished: delete it if nobody will export that version"
            )
            for table in sorted(workspace.exports.glob(f"*/{STAGING}"))
        ),
    ]


def prune(found: Sequence[Leftover], workspace: Workspace) -> list[Leftover]:
    """Delete what was found and is still left over: a rollback may need it by now. Returns what was deleted.

    Raises:
        OSError: the file system refuses
        ValueError: as `leftovers`
    """
    still = {leftover.path for leftover in leftovers(workspace)}
    deleted = [leftover for leftover in found if leftover.path in still]
    for leftover in deleted:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink()
    return deleted


def _runs_with_checkpoints(workspace: Workspace) -> Iterator[Path]:
    return (
        place.parent for place in sorted(workspace.runs.glob(f"*/{CHECKPOINTS_FOLDER}")) if place.is_dir()
    )


def _is_finished(run: Path) -> bool:
    return (run / RESULT_FILE).is_file() and (run / MODEL_FOLDER / "config.json").is_file()


def _earlier_vectors(workspace: Workspace) -> list[Path]:
    """Parquet files of versions that are neither in use nor the newest beside it.

    Versions whose table an export has begun to make are no earlier ones; while one works, none is.
    """
    exports = workspace.exports
    if not (exports / CURRENT_FILE).is_file():
        return []  # the table is gone, and any of them may be what it is made anew from
    settled = [path for path in exports.glob(f"*/{VECTORS_FILE}") if not (path.parent / STAGING).exists()]
    in_use = Path(read_current(workspace).parquet).resolve()
    if is_locked(exports / LOCK_FILE):  # looked at last: it may have begun meanwhile
        return []
    earlier = [path for path in settled if path.resolve() != in_use]
    earlier.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return earlier[EARLIER_EXPORTS:]


def _leftover(path: Path, what: str) -> Leftover:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Leftover(path, what, sum(file.stat().st_size for file in files))
