"""What a finished training leaves for the next stage, by name: `result.json` beside the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vipolyqwen_core.corpus.tables import read_json
from vipolyqwen_core.written_aside import written_aside

RESULT_FILE = "result.json"
MODEL_FOLDER = "model"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run. It is written last: where it lies, the model beside it is whole."""

    steps: int
    """Steps done."""
    pairs: int
    """Pairs seen, over all epochs."""
    seconds: float
    """Time spent in steps, over all resumed parts."""
    pairs_per_second: float
    """Pairs by seconds."""
    metrics: Mapping[str, float]
    """The last line of metrics."""
    refused_steps: int
    """Steps whose gradient was not finite."""
    exported_step: int
    """The step that the model is from: the best of the quick evaluations, or the last."""
    mlflow_run_id: str
    """The MLflow run."""
    trajectory: Mapping[str, Any] = field(default_factory=dict)
    """What decided the weights: data and settings."""

    def write(self, output: Path) -> None:
        """Write `result.json` into the folder of the run."""
        with written_aside(output / RESULT_FILE) as aside:
            aside.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False), encoding="utf-8")


def read_result(output: Path) -> TrainingResult | None:
    """The result in the folder of a run; None where the run has not finished.

    Raises:
        ValueError: it has, but its model is gone
    """
    path = output / RESULT_FILE
    if not path.is_file():
        return None
    if not (output / MODEL_FOLDER / "config.json").is_file():
        raise ValueError(
            f"run {output} has finished, but its {MODEL_FOLDER}/ is gone: bring it back, or delete "
            f"{RESULT_FILE}, and the run goes on from its last checkpoint, or begins where it has none"
        )
    return TrainingResult(**read_json(path))
