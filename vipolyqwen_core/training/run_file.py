"""`run.json`: what a training run was told. Paths of its workspace are relative to the file."""

import json
from dataclasses import replace
from pathlib import Path

from vipolyqwen_core.config import TrainingRun, from_json, to_json
from vipolyqwen_core.portable_paths import meant, spelled
from vipolyqwen_core.written_aside import written_aside

RUN_FILE = "run.json"
ERRORS_FOLDER = "errors"
"""In the folder of a run: `rank<N>.txt`, the traceback of a rank that failed."""
PLACES = ("backbone", "training_set", "output")
"""Keys of the paths that every run has."""


def write_run(run: TrainingRun) -> Path:
    """Write `run.json` into the folder of the run. A backbone that is no directory is a hub id."""
    path = run.output / RUN_FILE
    backbone = run.backbone.absolute() if run.backbone.is_dir() else run.backbone
    places = (backbone, run.training_set.absolute(), run.output.absolute())
    written = json.loads(to_json(run))
    written |= {key: spelled(place, run.output) for key, place in zip(PLACES, places, strict=True)}
    if run.hard_negatives is not None:
        written["hard_negatives"] = spelled(run.hard_negatives.absolute(), run.output)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")
    return path


def read_run(path: Path) -> TrainingRun:
    """The run of a `run.json`.

    Raises:
        ValueError: there is none, or it is wrong; names the key and what was expected
    """
    if not path.is_file():
        raise ValueError(f"config {path} does not exist")
    content = path.read_bytes()
    run = from_json(TrainingRun, content, origin=str(path))
    written = json.loads(content)
    backbone, training_set, output = (meant(written[key], path.parent) for key in PLACES)
    mined = run.hard_negatives and meant(written["hard_negatives"], path.parent)
    return replace(run, backbone=backbone, training_set=training_set, output=output, hard_negatives=mined)
