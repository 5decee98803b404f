"""The registered model: logged to SQLite, loaded without pickles, it predicts what the embedder encodes."""

import base64
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModel

from tests.core.small_training_set import picture
from tests.mlflow_store import mlflow_store, register_model
from tests.stored_pictures import file_of
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.contract import REGISTERED_MODEL
from vipolyqwen_core.serving.registration import log_registered_model, requirements


def encoded(number: int) -> str:
    return base64.b64encode(file_of(picture(number))).decode()


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, mlflow_store(f"sqlite:///{folder / 'mlflow.db'}"):
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        experiment = mlflow.create_experiment("test", artifact_location=str(folder / "artifacts"))
        yield register_model(tiny_model_dir, experiment, recipe="demo")


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


def test_vectors_keep_the_index_of_their_rows(served: Any) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"]}, index=[7, 3, 5])
    some = frame[frame["text"] != "b"]
    frame["embedding"] = served.predict(some)["embedding"]
    assert frame["embedding"].isna().tolist() == [False, True, False]
    assert np.allclose(frame["embedding"][5], served.predict([{"text": "c"}])["embedding"][0], atol=1e-6)


def test_columns_may_be_absent(served: Any) -> None:
    assert len(served.predict(pd.DataFrame({"text": ["a", "b"]}))) == 2
    assert len(served.predict(pd.DataFrame({"images": [[encoded(1)]]}))) == 1


NAN_IMAGES = pd.DataFrame({"text": ["a", "b"], "images": [np.nan, np.nan]})
NAN_TEXTS = pd.DataFrame({"text": [np.nan], "images": [[encoded(1)]], "prefix": [np.nan]})
SOME_NAN = pd.DataFrame({"text": ["a", None], "images": [np.nan, [encoded(1)]], "prefix": [pd.NA, "ocr"]})
PANDAS_STRINGS = pd.DataFrame({"text": pd.array(["a", None], "string"), "images": [None, [encoded(1)]]})


@pytest.mark.parametrize("table", [NAN_IMAGES, NAN_TEXTS, SOME_NAN, PANDAS_STRINGS])
def test_nan_counts_as_null_in_every_column(served: Any, table: pd.DataFrame) -> None:
    nulls = table.astype(object).where(table.notna(), None)
    vectors, expected = (np.stack(served.predict(each)["embedding"].to_list()) for each in (table, nulls))
    assert np.allclose(vectors, expected, atol=2e-6)


def answer(served: Any, body: dict[str, Any]) -> Any:
    """What the scoring server answers to a JSON body."""
    data, schema = json.dumps(body).encode(), served.metadata.get_input_schema()
    return scoring_server.invocations(data, "application/json", served, schema)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"text": "a"}, {"text": "b", "images": [encoded(1)]}]},
        {"dataframe_records": [{"text": "a", "images": None}, {"text": "b", "images": [encoded(1)]}]},
        {"dataframe_split": {"columns": ["text", "images"], "data": [["a", None], ["b", [encoded(1)]]]}},
    ],
)
def test_the_server_takes_rows_with_and_without_pictures(
    served: Any, tiny_model_dir: Path, body: dict[str, Any]
) -> None:
    response = answer(served, body)
    assert response.status == 200, response.response
    vectors = [row["embedding"] for row in json.loads(response.response)["predictions"]]
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    assert np.allclose(vectors, [embedder.encode("a"), embedder.encode("b", picture(1))], atol=2e-6)


def test_the_server_names_the_wrong_row_and_shows_no_traceback(served: Any) -> None:
    with pytest.raises(MlflowException) as caught:
        answer(served, {"dataframe_records": [{"text": "a"}, {"text": "b", "images": ["@"]}]})
    assert caught.value.get_http_status_code() == 400
    told = json.loads(caught.value.serialize_as_json())
    assert "Error: item 1: image 0 is not base64" in told["message"]
    assert "stack_trace" not in told


def test_base64_may_have_line_breaks_and_a_prefix_may_be_empty(served: Any) -> None:
    whole, broken = encoded(1), base64.encodebytes(base64.b64decode(encoded(1))).decode()
    assert broken.count("\n") > 1
    table = pd.DataFrame({"text": ["a", "a"], "images": [[whole], [broken]], "prefix": [None, ""]})
    first, second = served.predict(table)["embedding"]
    assert np.allclose(first, second, atol=2e-6)


def test_a_table_without_rows_gives_none(served: Any) -> None:
    assert len(served.predict(pd.DataFrame({"text": [], "images": []}))) == 0


def test_a_table_without_any_known_column_is_refused(served: Any) -> None:
    with pytest.raises(MlflowException, match="none of the columns text, images, prefix"):
        served.predict(pd.DataFrame({"texts": ["a", "b"]}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 3}, "item 0: text must be a string, not int"),
        ({"text": ["a"]}, "item 0: text must be a string, not list"),
        ({"text": "a", "prefix": ["ocr"]}, "item 0: prefix must be a string, not list"),
        ({"text": "a", "images": encoded(1)}, "item 0: images must be a list of base64 strings, not str"),
        ({"text": "a", "images": [None]}, "item 0: image 0 must be a base64 string, not NoneType"),
        ({"text": "a", "images": np.array(encoded(1))}, "item 0: images must be a list .*, not ndarray"),
        ({"images": [encoded(1), f"data:image/png;base64,{encoded(1)}"]}, "item 0: image 1 is a data URI"),
        ({"text": None}, "item 0: neither text nor picture"),
        ({"text": "a", "prefix": "summary"}, "item 0: unknown prefix 'summary'"),
        ({"text": "a", "images": ["/etc/hostname"]}, "item 0: image 0 is not base64"),
        ({"text": "a", "images": [base64.b64encode(b"text").decode()]}, "item 0: .*no known picture format"),
    ],
)
def test_a_wrong_row_is_named(served: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message):
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
        log_registered_model(tmp_path, metadata_={}, run_id="none", tags={})


def test_a_registration_that_was_stopped_leaves_no_copy_of_the_model(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    artifacts = tmp_path / "artifacts"

    def stopped(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with mlflow_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        experiment = mlflow.create_experiment("test", artifact_location=str(artifacts))
        with mlflow.start_run(experiment_id=experiment) as run:
            other = mlflow.pyfunc.log_model(name="own", python_model=PythonModel()).model_id

        def log() -> Any:
            return log_registered_model(
                tiny_model_dir, metadata_={}, run_id=run.info.run_id, tags={"run": "r"}
            )

        for stage in (
            "mlflow.register_model",
            "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifacts",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(stage, stopped)
                with pytest.raises(OSError, match="No space left"):
                    log()
        info = log()
        held = {folder.name for folder in (artifacts / "models").iterdir() if any(folder.rglob("MLmodel"))}
        assert held == {other, info.model_id}
        log()
        assert (artifacts / "models" / info.model_id / "artifacts" / "MLmodel").is_file()


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_has_ended_when_it_ended_whatever_becomes_of_the_registration(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def seen(*given: Any) -> None:
        during.append(client.get_run(run_id).info)
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        upload(*given)

    during: list[Any] = []
    upload = mlflow.MlflowClient.log_model_artifacts
    with mlflow_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("test", artifact_location=str(tmp_path / "artifacts"))
        run_id = client.create_run(experiment).info.run_id
        client.log_param(run_id, "seed", 7)
        client.log_metric(run_id, "mrr_at_10", 0.5)
        client.set_terminated(run_id, "FINISHED", end_time=1_000)
        monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", seen)
        with pytest.raises(OSError, match="No space left") if fails else nullcontext():
            info = log_registered_model(tiny_model_dir, metadata_={}, run_id=run_id, tags={"run": "r"})
        for found in (*during, client.get_run(run_id).info):
            assert (found.status, found.end_time) == ("FINISHED", 1_000)
        (logged,) = client.search_logged_models([experiment])
        assert (logged.source_run_id, logged.status) == (run_id, "FAILED" if fails else "READY")
        if not fails:
            (output,) = client.get_run(run_id).outputs.model_outputs
            assert output.model_id == info.model_id == logged.model_id
            assert info.run_id == client.get_model_version(REGISTERED_MODEL, "1").run_id == run_id
            assert logged.params == {"seed": "7"}
            assert [(metric.key, metric.value) for metric in logged.metrics] == [("mrr_at_10", 0.5)]


def test_a_full_temporary_folder_is_named_where_mlflow_copies_the_code(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree

    def full(src: Any, *rest: Any, **options: Any) -> Any:
        if Path(src).name == "vipolyqwen_core":
            raise shutil.Error([(src, "there", "[Errno 28] No space left on device: 'there'")])
        return copy(src, *rest, **options)

    with mlflow_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        experiment = mlflow.create_experiment("test", artifact_location=str(tmp_path / "artifacts"))
        monkeypatch.setattr(shutil, "copytree", full)
        with pytest.raises(OSError, match="No space") as caught:
            register_model(tiny_model_dir, experiment)
        assert caught.value.filename == tempfile.gettempdir()
