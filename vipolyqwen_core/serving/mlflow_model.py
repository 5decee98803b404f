"""The registered model: this file is what MLflow runs (models-from-code).

Input columns: `text` (a string or null), `images` (a list of base64 PNG or JPEG, or null), `prefix` (a task
or null); NaN counts as null, and so does an absent column. Output column: `embedding`, a list of float32 of
unit length. It takes bytes, never paths or URLs.

It imports what encodes, and nothing else of this package: a process that holds the code of an older version
has that, under whatever name a newer one keeps the rest.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array

from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

ARTIFACT: Final = "model"
"""Name of the model directory among the artifacts of the logged model."""

INPUTS: Final = ("text", "images", "prefix")

SIGNATURE: Final = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), column, required=False) for column in INPUTS]),
    outputs=Schema([ColSpec(Array(DataType.float), "embedding")]),
)
"""Any type: MLflow holds a table against the signature before `predict` sees it, and by `string` or `Array`
it refuses what pandas makes of a value that is not there: NaN, or a whole column of it. What is wrong with a
value is said here, with its row."""


class RegisteredEmbedder(PythonModel):
    """Encodes rows of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model directory that lies beside this file in the registry."""
        self.embedder = ViPolyQwenEmbedder.from_pretrained(context.artifacts[ARTIFACT])

    # Without hints: MLflow would take them for the schema, in place of the signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One vector a row, under the index of the table: a join by it is a join by row.

        Raises:
            MlflowException: names the row and what is wrong with it. A server answers its clients with the
                message of this one; of any other it shows the traceback, paths and all
        """
        try:
            return self._embeddings(pd.DataFrame(model_input))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _embeddings(self, table: pd.DataFrame) -> pd.DataFrame:
        if not set(INPUTS) & set(table.columns):  # MLflow has dropped what it does not know, rows and all
            raise ValueError(f"nothing to encode: the table has none of the columns {', '.join(INPUTS)}")
        rows = table.to_dict(orient="records")
        if not rows:
            return pd.DataFrame({"embedding": []})
        vectors = self.embedder.encode(
            [_given(row, "text") for row in rows],
            [_pictures(number, row) for number, row in enumerate(rows)],
            [_prefix(number, row) for number, row in enumerate(rows)],
        )
        return pd.DataFrame({"embedding": list(vectors)}, index=table.index)


def _given(row: Mapping[Any, Any], column: str) -> Any:
    """The value of a column; None where it is absent, null or NaN."""
    value = row.get(column)
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def _prefix(number: int, row: Mapping[Any, Any]) -> str | None:
    """The prefix of a row; an empty one is none."""
    value = _given(row, "prefix")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"item {number}: prefix must be a string, not {type(value).__name__}")
    return value or None


def _pictures(number: int, row: Mapping[Any, Any]) -> list[bytes]:
    """The files of a row's pictures."""
    value = _given(row, "images")
    if value is None:
        return []
    if not (isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)):
        raise ValueError(
            f"item {number}: images must be a list of base64 strings, not {type(value).__name__}"
        )
    files = []
    for place, encoded in enumerate(value):
        if not isinstance(encoded, str):
            raise ValueError(
                f"item {number}: image {place} must be a base64 string, not {type(encoded).__name__}"
            )
        if encoded.startswith("data:"):
            raise ValueError(
                f"item {number}: image {place} is a data URI: give its base64 alone, what follows the comma"
            )
        try:
            files.append(base64.b64decode("".join(encoded.split()), validate=True))  # the shell breaks lines
        except ValueError as error:
            raise ValueError(f"item {number}: image {place} is not base64: {error}") from error
    return files


mlflow.models.set_model(RegisteredEmbedder())
