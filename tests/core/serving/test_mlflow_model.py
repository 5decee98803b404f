"""The registered model: logged to SQLite, loaded without pickles, it predicts what the embedder encodes."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.core.small_training_set import picture
from tests.mlflow_store import mlflow_store
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.serving.mlflow_model import log_registered_model, requirements


def encoded(number: int) -> str:
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, mlflow_store(f"sqlite:///{folder / 'mlflow.db'}"):
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        experiment = mlflow.create_experiment("test", artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment) as run:
            pass
        yield log_registered_model(tiny_model_dir, "vipolyqwen", {"recipe": "demo"}, run_id=run.info.run_id)


@pytest.fixture(scope="module")
def served(logged: Any) -> Any:
    return mlflow.pyfunc.load_model("models:/vipolyqwen/1")


def test_predict_equals_the_embedder(served: Any, tiny_model_dir: Path) -> None:
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    frame = pd.DataFrame(
        {
            "text": ["một câu", np.nan, "same?", "total?"],
            "images": [None, [encoded(1)], [encoded(2), encoded(3), encoded(4)], []],
            "prefix": [None, np.nan, "vqa_multi", "ocr"],
        }
    )
    output = served.predict(frame)
    assert list(output.columns) == ["embedding"]
    expected = [
        embedder.encode("một câu"),
        embedder.encode(images=picture(1)),
        embedder.encode("same?", images=[picture(2), picture(3), picture(4)], prefix="vqa_multi"),
        embedder.encode("total?", prefix="ocr"),
    ]
    vectors = np.stack(output["embedding"].to_list())
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, expected, atol=2e-6)


def test_columns_may_be_absent(served: Any) -> None:
    assert len(served.predict(pd.DataFrame({"text": ["a", "b"]}))) == 2
    assert len(served.predict(pd.DataFrame({"images": [[encoded(1)]]}))) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "item 0: neither text nor picture"),
        ({"text": "a", "prefix": "summary"}, "item 0: unknown prefix 'summary'"),
        ({"text": "a", "images": ["/etc/hostname"]}, "item 0: image 0 is not base64"),
        ({"text": "a", "images": [base64.b64encode(b"text").decode()]}, "item 0: .*no known picture format"),
    ],
)
def test_a_wrong_row_is_named(served: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served.predict(pd.DataFrame([row]))


def test_the_logged_model_holds_code_signature_and_no_pickle(logged: Any) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    assert (folder / "code" / "vipolyqwen_core" / "contract.py").is_file()
    assert not [*folder.rglob("*.pkl"), *folder.rglob("*.pickle"), *folder.rglob("*.bin")]
    assert [column.name for column in logged.signature.inputs] == ["text", "images", "prefix"]
    assert [column.name for column in logged.signature.outputs] == ["embedding"]
    assert logged.metadata == {"recipe": "demo"}
    written = (folder / "requirements.txt").read_text().split()
    assert written == requirements()


def test_requirements_are_pinned_and_leave_the_factory_out() -> None:
    names = [line.partition("==")[0] for line in requirements()]
    assert {"torch", "transformers", "mlflow"} <= set(names)
    assert not {"dagster", "polars", "lancedb", "great_expectations", "pyarrow"} & set(names)
    assert all("==" in line and "+" not in line for line in requirements())


def test_a_folder_without_a_model_is_not_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model directory"):
        log_registered_model(tmp_path)
