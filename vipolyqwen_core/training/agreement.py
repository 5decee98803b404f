"""Agreement: before a run starts, its ranks make sure that they are about to train the same thing.

Ranks of one machine read the same files. Those of several machines may not: a copy of `run.json` with other
settings, or of a training set with other rows, would train on and spoil the weights, or leave ranks waiting
for each other; and where folders of the same name are not one folder, no checkpoint is ever whole.
"""

import hashlib
import time
import uuid
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vipolyqwen_core.config import TrainingRun, TrainingSettings
from vipolyqwen_core.training.identity import differences, flatten, trajectory
from vipolyqwen_core.training.plan import PlanIndex
from vipolyqwen_core.training.ranks import is_first, of_all, of_first, rank, together

SECONDS_TO_APPEAR = 60.0
"""For a file that another machine wrote: a client of NFS may look at a folder as it was a minute ago."""
MARK = ".shared."
"""How the file begins by which ranks see that they share a folder."""
OF_A_MACHINE = "loader_workers"
"""The setting of the training process that may differ from machine to machine."""


def refuse_disagreement(run: TrainingRun, index: PlanIndex) -> None:
    """Make sure that all ranks have the same settings, the same rows, and one folder to write to.

    Raises:
        ValueError: on all ranks, in the same words; names what differs, or the rank that sees another folder
    """
    _refuse_other_facts(_facts(run, index))
    _refuse_other_folder(run.output)


def _facts(run: TrainingRun, index: PlanIndex) -> dict[str, Any]:
    """What decides the weights, and when ranks meet."""
    training = TypeAdapter(TrainingSettings).dump_python(run.recipe.training, mode="json")
    del training[OF_A_MACHINE]
    return flatten({**trajectory(run), "training": training, "index.parquet": _digest(index)})


def _digest(index: PlanIndex) -> str:
    digest = hashlib.blake2b(repr(index.source_names).encode(), digest_size=8)
    for column in (index.keys, index.tasks, index.sources, index.tokens, index.patches, index.images):
        digest.update(column.data)
    return digest.hexdigest()


def _refuse_other_facts(own: dict[str, Any]) -> None:
    first, *others = of_all(own)
    for number, other in enumerate(others, start=1):
        differing = [
            f"{key}: {left!r} on rank 0, {right!r} on rank {number}"
            for key, (left, right) in differences(first, other).items()
        ]
        if differing:
            raise ValueError(
                f"the ranks are about to train different things ({'; '.join(differing)}): all machines need "
                "the same run.json, training set and backbone"
            )


def _refuse_other_folder(output: Path) -> None:
    mark = output / of_first(f"{MARK}{uuid.uuid4().hex[:8]}")
    with together(ValueError):
        if is_first():
            output.mkdir(parents=True, exist_ok=True)
            for left_over in output.glob(f"{MARK}*"):  # by a rank that was killed meanwhile
                left_over.unlink()
            mark.touch()
    try:
        with together(ValueError):
            if not _appears(mark):
                raise ValueError(
                    f"rank {rank()} sees another folder {output} than rank 0: several machines need the "
                    "folder of the run on a file system that all of them see"
                )
    finally:
        if is_first():
            mark.unlink()


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
