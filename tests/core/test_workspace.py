"""The workspace: its path, what the environment says about it, and what child processes are told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vipolyqwen_core.workspace import (
    Workspace,
    configure,
    data_root_setting,
    is_served,
    manifest_setting,
    workspace_of_run,
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of one's own: what is set in it is gone after the test."""
    own: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", own)
    return own


def test_variables_that_are_set_to_nothing_mean_the_workspace(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment.update(DAGSTER_HOME="", MLFLOW_TRACKING_URI="")
    configure(Workspace(tmp_path))
    assert environment["DAGSTER_HOME"] == str(tmp_path / "dagster")
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_variables_that_are_set_take_over_and_dagster_gets_an_absolute_path(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment.update(DAGSTER_HOME="instance", MLFLOW_TRACKING_URI="http://mlflow:5000")
    configure(Workspace(tmp_path / "home"))
    assert environment["DAGSTER_HOME"] == str(tmp_path / "instance")
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_what_the_user_says_of_a_library_stands(environment: dict[str, str], tmp_path: Path) -> None:
    own = {"OMP_WAIT_POLICY": "ACTIVE", "PYTORCH_ALLOC_CONF": "max_split_size_mb:512", "LANCEDB_LOG": "debug"}
    environment.update(own)
    configure(Workspace(tmp_path))
    assert own.items() <= environment.items()
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_run_json_tells_the_workspace_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "shared" / "runs" / "demo-1" / "run.json"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIPOLYQWEN_HOME", raising=False)
    assert workspace_of_run(config).home == tmp_path / "shared"
    assert workspace_of_run(Path("shared/runs/demo-1/run.json")).home == tmp_path / "shared"
    assert workspace_of_run(tmp_path / "run.json").home == tmp_path / ".vipolyqwen"
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path / "named"))
    assert workspace_of_run(config).home == tmp_path / "named"


def test_the_tilde_that_a_shell_leaves_is_filled_in(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves it in `--sources=~/corpora.yaml`; a file's name may begin with it."""
    monkeypatch.chdir(tmp_path)
    environment["HOME"] = str(tmp_path / "ann")
    configure(Workspace(tmp_path), sources="~/corpora.yaml", data_root="~/data")
    assert manifest_setting() == str(tmp_path / "ann" / "corpora.yaml")
    assert data_root_setting() == str(tmp_path / "ann" / "data")
    configure(Workspace(tmp_path), data_root="s3://bucket/corpora")
    assert data_root_setting() == "s3://bucket/corpora"
    configure(Workspace(tmp_path), sources="~nobody.yaml")
    assert manifest_setting() == str(tmp_path / "~nobody.yaml")


def test_a_login_in_the_address_of_a_server_is_handed_to_mlflow_apart(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["MLFLOW_TRACKING_URI"] = "https://ann%40work:open%20sesame@mlflow:5000/team"
    configure(Workspace(tmp_path))
    assert environment["MLFLOW_TRACKING_URI"] == "https://mlflow:5000/team"
    assert environment["MLFLOW_TRACKING_USERNAME"] == "ann@work"
    assert environment["MLFLOW_TRACKING_PASSWORD"] == "open sesame"
    environment["MLFLOW_TRACKING_URI"] = "https://bob:other@mlflow:5000"  # MLflow takes the variables first
    configure(Workspace(tmp_path))
    assert environment["MLFLOW_TRACKING_URI"] == "https://mlflow:5000"
    assert environment["MLFLOW_TRACKING_PASSWORD"] == "open sesame"
    environment["MLFLOW_TRACKING_URI"] = "https://token@mlflow:5000"  # half a login, which MLflow hands on
    configure(Workspace(tmp_path))
    assert environment["MLFLOW_TRACKING_URI"] == "https://token@mlflow:5000"
    database = "postgresql://ann:sesame@db/mlflow"  # SQLAlchemy reads it there, and hides it itself
    environment["MLFLOW_TRACKING_URI"] = database
    configure(Workspace(tmp_path))
    assert environment["MLFLOW_TRACKING_URI"] == database


@pytest.mark.parametrize("name", ["runs [old]", "home*", "what?", "my%20models", "$HOME"])
def test_a_folder_whose_name_libraries_do_not_take_literally_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must not hold"):
        Workspace(tmp_path / name)
    assert Workspace(tmp_path / "nhà mới (1) 50%").training_set.name == "training_set"


def test_only_a_server_says_where_artifacts_lie() -> None:
    served = ["http://mlflow:5000", "https://mlflow.example", "databricks", "databricks-uc://profile"]
    stores = [
        "sqlite:////data/mlflow.db",
        "postgresql://mlflow@db/mlflow",
        "mysql+pymysql://db/x",
        "file:/data",
    ]
    assert [uri for uri in served + stores if is_served(uri)] == served


def test_a_port_for_which_the_disk_has_no_room_leaves_that_of_before(tmp_path: Path) -> None:
    Workspace(tmp_path).remember_mlflow_port(5001)
    place = f"Workspace(Path({str(tmp_path)!r}))"
    remember = f"from vipolyqwen_core.workspace import *; {place}.remember_mlflow_port(5002)"
    limited = ["bash", "-c", 'ulimit -f 0; exec "$0" -c "$1"', sys.executable, remember]
    ended = subprocess.run(limited, capture_output=True, text=True)
    assert (ended.returncode, "File too large" in ended.stderr) == (1, True), ended.stderr
    assert Workspace(tmp_path).mlflow_ui == "http://127.0.0.1:5001"
