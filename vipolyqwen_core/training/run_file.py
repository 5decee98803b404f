"""`run.json`: what a training run was told. Paths of its workspace are relative to the file."""

from dataclasses import replace
from pathlib import Path

from vipolyqwen_core.config import TrainingRun, from_json, to_json
from vipolyqwen_core.corpus.tables import written_aside
from vipolyqwen_core.portable_paths import meant, spelled

RUN_FILE = "run.json"


def write_run(run: TrainingRun) -> Path:
    """Write `run.json` into the folder of the run."""
    path = run.output / RUN_FILE
    backbone, training_set, output = (
        Path(spelled(place, run.output)) for place in (run.backbone, run.training_set, run.output)
    )
    written = replace(run, backbone=backbone, training_set=training_set, output=output)
    with written_aside(path) as aside:
        aside.write_text(to_json(written), encoding="utf-8")
    return path


def read_run(path: Path) -> TrainingRun:
    """The run of a `run.json`.

    Raises:
        ValueError: there is none, or it is wrong; names the key and what was expected
    """
    if not path.is_file():
        raise ValueError(f"config {path} does not exist")
    run = from_json(TrainingRun, path.read_bytes(), origin=str(path))
    backbone, training_set, output = (
        meant(str(place), path.parent) for place in (run.backbone, run.training_set, run.output)
    )
    return replace(run, backbone=backbone, training_set=training_set, output=output)
