"""The registered model: this file is what MLflow runs (models-from-code), and it logs itself.

Input columns: `text` (a string or null), `images` (a list of base64 PNG or JPEG, or null), `prefix` (a task
or null); NaN counts as null. Output column: `embedding`, a list of float32 of unit length. It takes bytes,
never paths or URLs.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from packaging.requirements import Requirement

import vipolyqwen_core
from vipolyqwen_core.contract import REGISTERED_MODEL
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

ARTIFACT: Final = "model"
"""Name of the model directory among the artifacts of the logged model."""

SIGNATURE: Final = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "text", required=False),
            ColSpec(Array(DataType.string), "images", required=False),
            ColSpec(DataType.string, "prefix", required=False),
        ]
    ),
    outputs=Schema([ColSpec(Array(DataType.float), "embedding")]),
)
"""Explicit: MLflow guesses less than half of it right."""


class RegisteredEmbedder(PythonModel):
    """Encodes rows of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model directory that lies beside this file in the registry."""
        self.embedder = ViPolyQwenEmbedder.from_pretrained(context.artifacts[ARTIFACT])

    # Without hints: MLflow would take them for the schema, in place of the signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One vector a row.

        Raises:
            ValueError: names the row and what is wrong with it
        """
        rows = pd.DataFrame(model_input).to_dict(orient="records")
        if not rows:
            return pd.DataFrame({"embedding": []})
        vectors = self.embedder.encode(
            [_given(row, "text") for row in rows],
            [_pictures(number, row) for number, row in enumerate(rows)],
            [_given(row, "prefix") for row in rows],
        )
        return pd.DataFrame({"embedding": list(vectors)})


def _given(row: Mapping[Any, Any], column: str) -> Any:
    """The value of a column; None where it is absent, null or NaN."""
    value = row.get(column)
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def _pictures(number: int, row: Mapping[Any, Any]) -> list[bytes]:
    """The files of a row's pictures."""
    value = _given(row, "images")
    if value is None:
        return []
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(
            f"item {number}: images must be a list of base64 strings, not {type(value).__name__}"
        )
    files = []
    for place, encoded in enumerate(value):
        try:
            files.append(base64.b64decode(encoded, validate=True))
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"item {number}: image {place} is not base64: {error}") from error
    return files


def requirements() -> list[str]:
    """What a server installs: the base dependencies of this package and MLflow, pinned as they are here."""
    declared = (Requirement(line) for line in metadata.requires("vipolyqwen") or ())
    names = [each.name for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*names, "mlflow")]


def log_registered_model(
    model_dir: Path,
    registered_name: str | None = REGISTERED_MODEL,
    metadata_: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Any:
    """Log a model directory to a run and, where a name is given, register it as a new version.

    The tracking store is the one that is set. `run_id` names a run that exists; without it the active run, or
    a new one, takes the model. The version is created with its `tags`: whatever happens to this process next,
    it can be told where it came from.

    Returns:
        MLflow's ModelInfo: `model_uri`, `registered_model_version` ...
    Raises:
        ValueError: the directory holds no model
    """
    if not (model_dir / "config.json").is_file():
        raise ValueError(f"{model_dir} is no model directory: it has no config.json")
    arguments: dict[str, Any] = {
        "name": "model",
        "python_model": __file__,
        "artifacts": {ARTIFACT: str(model_dir)},
        "code_paths": [str(Path(vipolyqwen_core.__file__).parent)],
        "signature": SIGNATURE,
        "pip_requirements": requirements(),
        "registered_model_name": registered_name,
        "metadata": dict(metadata_ or {}),
        "tags": dict(tags or {}),
    }
    if run_id is None:
        return mlflow.pyfunc.log_model(**arguments)
    with mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(**arguments)


mlflow.models.set_model(RegisteredEmbedder())
