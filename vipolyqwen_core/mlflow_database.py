"""MLflow's database in a workspace, which appears whole or not at all."""

import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from vipolyqwen_core.written_aside import written_aside


def make_mlflow_database(database: Path) -> None:
    """Make an empty database for MLflow where there is none.

    MLflow would make its tables in place, over a second, and never complete those of a process that was
    killed meanwhile. Its command makes them aside, as core does not import it.

    Raises:
        OSError: the command failed; the lines behind the first are what it said
    """
    if database.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / database.name
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{made}"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise OSError(f"MLflow could not make {database}\n{told.stderr}")
        with suppress(FileExistsError), written_aside(database) as aside:
            shutil.copyfile(made, aside)
            if database.exists():  # another process was quicker, and may have put a run there
                raise FileExistsError(database)
