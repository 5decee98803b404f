"""MLflow's database of a workspace is there whole, or not at all, whenever a process is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from vipolyqwen_core.mlflow_database import make_mlflow_database

MAKER = "from vipolyqwen_core.mlflow_database import *; make_mlflow_database(Path({!r}))"


def test_a_kill_while_the_tables_are_made_leaves_no_database(tmp_path: Path) -> None:
    database, temporary = tmp_path / "nhà, 100 %" / "mlflow.db", tmp_path / "temporary"
    temporary.mkdir()
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER.format(str(database))],
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    while not any(made.stat().st_size for made in temporary.glob("*/mlflow.db")):
        assert maker.poll() is None
        time.sleep(0.001)
    os.killpg(maker.pid, 9)
    maker.wait()
    assert not database.exists()
    make_mlflow_database(database)
    assert [*database.parent.iterdir()] == [database]
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    run = client.create_run(client.create_experiment("vipolyqwen")).info.run_id
    make_mlflow_database(database)
    assert client.get_run(run).info.run_id == run


def test_what_mlflow_says_is_told_where_it_cannot_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.py").write_text("raise OSError('database or disk is full')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(OSError, match=r"could not make .*mlflow\.db\n(.*\n)*.*disk is full"):
        make_mlflow_database(tmp_path / "home" / "mlflow.db")
    assert not (tmp_path / "home" / "mlflow.db").exists()
