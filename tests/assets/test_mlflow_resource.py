"""A tracking server that is away is named at once, and named in one sentence after MLflow has tried."""

import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from assets.resources import MlflowResource
from orchestration.factory import run_factory, run_rollback
from tests.mlflow_store import mlflow_store
from tests.web_server import QuietHandler, serving
from vipolyqwen_core.workspace import Workspace, without_login

SILENT = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""


def commands(place: Workspace) -> list[Callable[[], object]]:
    return [
        lambda: run_factory(place, None, "demo", Console()),
        lambda: run_rollback(place, "demo", 1, Console()),
    ]


@pytest.fixture
def guarded_server() -> Iterator[str]:
    """A server that wants a login."""

    class Refusing(QuietHandler):
        def do_GET(self) -> None:
            self.send_error(401)

    with serving(Refusing) as address:
        yield address


def test_a_server_that_answers_with_anything_is_there(
    guarded_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = MlflowResource(home=str(tmp_path))
    for store in (guarded_server, f"sqlite:///{tmp_path / 'none.db'}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        resource.refuse_silence()


def test_a_password_in_the_address_of_a_store_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SILENT.replace("://", "://ann:sesame@"))
    resource = MlflowResource(home=str(tmp_path))
    assert "sesame" not in str(resource.model_dump())  # Dagster's pages show it
    assert (
        without_login("postgresql+psycopg://ann:p@ss@db:5432/mlflow") == "postgresql+psycopg://db:5432/mlflow"
    )
    assert without_login("in postgresql://ann:p/ss@db/mlflow: full") == "in postgresql://db/mlflow: full"
    assert without_login("http://token@mlflow:5000, and ann@work") == "http://mlflow:5000, and ann@work"
    assert without_login("sqlite:////home/ann@work/mlflow.db") == "sqlite:////home/ann@work/mlflow.db"


def test_a_command_says_before_any_work_that_the_server_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SILENT)
    place = Workspace(tmp_path / "home")
    for command in commands(place):
        with pytest.raises(ValueError, match=rf"MLflow does not answer at {SILENT}, which .* refused"):
            command()
    assert list(place.home.iterdir()) == [place.demo_corpus]  # which stands for a manifest, and is read first


@pytest.mark.parametrize(
    "store", ["localhost:5000", "foo://ann:sesame@bar", "postgresql://ann:sesame@db/mlflow", "{folder}"]
)
def test_a_command_says_before_any_work_that_mlflow_cannot_use_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(folder=tmp_path / "mlruns"))
    for command in commands(Workspace(tmp_path)):
        with pytest.raises(ValueError, match=r"which MLFLOW_TRACKING_URI names \(.*give the address") as told:
            command()
        assert "sesame" not in str(told.value)
    assert not (tmp_path / "curated").exists()


def test_a_server_that_is_none_of_mlflow_is_named(
    guarded_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded_server)
    with pytest.raises(ValueError, match=r"the server at http://127.* error code 401.*look at the login"):
        MlflowResource(home=str(tmp_path)).prepare()


def test_a_command_says_before_any_work_that_its_user_has_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_user: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    place = Workspace(tmp_path / "home")
    for command in commands(place):
        with pytest.raises(ValueError, match=r"has no home folder.*set HOME"):
            command()
    assert list(place.home.iterdir()) == [place.demo_corpus]


def test_a_command_names_a_damaged_database_of_the_workspace_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(tmp_path)
    place.mlflow_database.write_bytes(b"cut off" * 1000)
    told = rf"{place.mlflow_database} cannot be used \(file is not a database\): restore"
    for command in commands(place):
        with pytest.raises(ValueError, match=told):
            command()
    assert set(place.home.iterdir()) == {place.demo_corpus, place.mlflow_database}


def test_a_stage_says_so_after_mlflow_has_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_store(SILENT), pytest.raises(ValueError, match=f"MLflow does not answer at {SILENT}"):
        MlflowResource(home=str(tmp_path)).connect()
