"""The workspace: where the factory writes everything. The only file that reads environment variables.

VIPOLYQWEN_HOME      the workspace; default `.vipolyqwen/` in the current folder
VIPOLYQWEN_SOURCES   the manifest; default: the built-in demo corpus
VIPOLYQWEN_DATA_ROOT folder or URL that the manifest's relative paths start from; default: its own
VIPOLYQWEN_RECIPE    name of the recipe; default `demo`
MLFLOW_TRACKING_URI  default: SQLite in the workspace
DAGSTER_HOME         default: a folder in the workspace
VIPOLYQWEN_TIME_ZONE that of the schedules, `Asia/Ho_Chi_Minh`; default UTC
VIPOLYQWEN_ON_FAILURE command that is told of failed runs; default: none
"""

import os
import re
import sys
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from vipolyqwen_core.written_aside import written_aside

MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Where MLflow looks for a login: there first, where both are set."""
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "1",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "GX_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "LANCEDB_LOG": "error",
}
"""No library phones home or starts workers that nobody asked for, unless the user said otherwise. Nor does
LanceDB say of each partition of an index that an update has no rows for it."""

STEADY = {"OMP_WAIT_POLICY": "PASSIVE", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""OMP_WAIT_POLICY: threads that wait sleep instead of spinning, which on a busy machine cost training on a
CPU five sixths of its pairs a second; OpenMP reads it when PyTorch is imported. PYTORCH_ALLOC_CONF: chunks of
ever different sizes do not fragment the memory of a GPU; PyTorch reads it when the GPU is first used."""

MLFLOW_OF_TRAINING = {
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow logs the load of processor, memory and GPU. If its server does not answer, it gives up within a
quarter of a minute, not four minutes: metrics are sent again later, and a run that was told to stop cannot
wait that long."""

MISREAD = re.compile(r"[*?\[$]|%[0-9A-Fa-f]{2}")
"""What libraries do not take literally in a path."""
DEFAULT_MLFLOW_PORT = 5000
MLFLOW_PORT_FILE = "mlflow_port"


@dataclass(frozen=True)
class Workspace:
    """Paths below one folder. Nothing is created by asking for a path.

    Raises:
        ValueError: the path holds a sign that Polars takes for a pattern: tables would be those of other
            folders, or none. Or one that Great Expectations takes for a variable, or SQLAlchemy for another
            sign, spelled as in a URL: both would look elsewhere
    """

    home: Path

    def __post_init__(self) -> None:
        if MISREAD.search(str(self.home)):
            raise ValueError(
                f"workspace {self.home}: its path must not hold any of * ? [ $, nor % before two hex digits; "
                "choose another folder with --home or VIPOLYQWEN_HOME"
            )

    @property
    def demo_corpus(self) -> Path:
        """Source files of the built-in corpus."""
        return self.home / "demo_corpus"

    @property
    def backbones(self) -> Path:
        """Backbone directories that were made here (the tiny one)."""
        return self.home / "backbones"

    def images(self, source: str) -> Path:
        """Lance dataset of a source's pictures."""
        return self.home / "images" / f"{source}.lance"

    def curated(self, source: str) -> Path:
        """`pairs.parquet`, `ledger.parquet`, `stage.json`."""
        return self.home / "curated" / source

    def tagged(self, source: str) -> Path:
        """`pairs.parquet`, `ledger.parquet`, `stage.json`."""
        return self.home / "tagged" / source

    def validated(self, source: str) -> Path:
        """One folder a version, and `accepted.json` naming the last version whose checks passed."""
        return self.home / "validated" / source

    @property
    def data_docs(self) -> Path:
        """Great Expectations' HTML."""
        return self.home / "data_docs"

    @property
    def training_set(self) -> Path:
        """`train.arrow`, `eval.arrow`, `index.parquet`, `images.json`, `ledger.parquet`, `stage.json`."""
        return self.home / "training_set"

    @property
    def hard_negatives(self) -> Path:
        """`mined.arrow`, `stage.json`."""
        return self.home / "hard_negatives"

    @property
    def assignments(self) -> Path:
        """The sticky split, kept over all training sets."""
        return self.home / "split" / "assignments.parquet"

    @property
    def runs(self) -> Path:
        """One folder a training run: `run.json`, `checkpoints/`, `model/`."""
        return self.home / "runs"

    @property
    def evaluations(self) -> Path:
        """One folder an evaluated run: `report.html`, `evaluation.json`."""
        return self.home / "evaluations"

    @property
    def models(self) -> Path:
        """Model directories of registered versions: `v3/`."""
        return self.home / "models"

    @property
    def exports(self) -> Path:
        """A folder a model version with its Parquet; `lancedb/`; `current.json` names the version in use."""
        return self.home / "exports"

    @property
    def lancedb(self) -> Path:
        """The LanceDB folder with the table `embeddings`."""
        return self.exports / "lancedb"

    @property
    def mlflow_database(self) -> Path:
        """Tracking and registry, unless `MLFLOW_TRACKING_URI` names another store."""
        return self.home / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """Tracking and registry."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.own_mlflow_uri

    @property
    def own_mlflow_uri(self) -> str:
        """Tracking and registry, where nobody chose others."""
        return f"sqlite:///{self.mlflow_database}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts, unless an MLflow server says where they lie."""
        return self.home / "mlartifacts"

    @property
    def mlflow_ui(self) -> str:
        """Where a person reads the workspace's own store: the port that `vipolyqwen ui` served it on last."""
        path = self.home / MLFLOW_PORT_FILE
        port = path.read_text(encoding="utf-8").strip() if path.is_file() else str(DEFAULT_MLFLOW_PORT)
        return f"http://127.0.0.1:{port}"

    def remember_mlflow_port(self, port: int) -> None:
        """Say where MLflow is served; links that are made from now on lead there."""
        with written_aside(self.home / MLFLOW_PORT_FILE) as aside:
            aside.write_text(f"{port}\n", encoding="utf-8")

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance; absolute, as Dagster wants it."""
        return Path(os.environ.get("DAGSTER_HOME") or self.home / "dagster").expanduser().absolute()


def is_served(tracking_uri: str) -> bool:
    """Whether a server stands before MLflow's store: it says itself where artifacts lie.

    A database says nothing of it, and MLflow would take the folder that a process happens to run in.
    """
    return tracking_uri.startswith(("http:", "https:", "databricks"))


def without_login(text: str) -> str:
    """A URI, or a text with some, without users and passwords: as it is shown where others read it, too."""
    return re.sub(r"://[^:/@\s]*(?::\S*)?@", "://", text)


def current_workspace() -> Workspace:
    """The workspace of this process."""
    return Workspace(Path(os.environ.get("VIPOLYQWEN_HOME") or ".vipolyqwen").expanduser().resolve())


def workspace_of_run(config: Path) -> Workspace:
    """The workspace of a training process: where none is named, that which `run.json` lies in.

    HOME/runs/RUN/run.json; one that lies elsewhere has the workspace of the current folder.
    """
    runs = config.resolve().parent.parent
    if os.environ.get("VIPOLYQWEN_HOME") or runs.name != "runs":
        return current_workspace()
    return Workspace(runs.parent)


def manifest_setting() -> str | None:
    """Path of the manifest that the environment asks for; None: the built-in demo corpus."""
    return os.environ.get("VIPOLYQWEN_SOURCES") or None


def data_root_setting() -> str | None:
    """Folder, or URL of one, that the relative paths of a manifest start from; None: the manifest's own."""
    root = os.environ.get("VIPOLYQWEN_DATA_ROOT")
    return _absolute(root) if root else None


def _absolute(folder: str) -> str:
    return folder if "://" in folder else str(Path(os.path.expanduser(folder)).resolve())


def recipe_setting() -> str:
    """Name of the recipe that the environment asks for."""
    return os.environ.get("VIPOLYQWEN_RECIPE") or "demo"


def time_zone_setting() -> str:
    """Time zone of the schedules.

    Raises:
        ValueError: there is none of that name
    """
    name = os.environ.get("VIPOLYQWEN_TIME_ZONE")
    if not name:
        return "UTC"
    try:
        return zoneinfo.ZoneInfo(name).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(
            f"VIPOLYQWEN_TIME_ZONE: expected a name like Asia/Ho_Chi_Minh, got {name!r}"
        ) from error


def failure_command() -> str | None:
    """Shell command that is told of failed runs; None: nobody asked to be told."""
    return os.environ.get("VIPOLYQWEN_ON_FAILURE") or None


def process_rank() -> int:
    """Rank of this process, as torch's launcher says; 0 where there is one process."""
    return int(os.environ.get("RANK") or 0)


def configure(
    workspace: Workspace, sources: str | None = None, recipe: str | None = None, data_root: str | None = None
) -> None:
    """Settle workspace, manifest, recipe and data root for this process and its children; no telemetry.

    Libraries read several of these when they are imported: call this first.
    """
    for name, value in {**QUIET, **STEADY}.items():
        os.environ.setdefault(name, value)
    os.environ["VIPOLYQWEN_HOME"] = str(workspace.home)
    # also where they are set to nothing, which MLflow and Dagster take for a store of their own choice
    os.environ["MLFLOW_TRACKING_URI"] = _login_apart(workspace.mlflow_uri)
    os.environ["DAGSTER_HOME"] = str(workspace.dagster_home)
    if sources is not None:
        os.environ["VIPOLYQWEN_SOURCES"] = str(Path(os.path.expanduser(sources)).resolve())
    if data_root is not None:
        os.environ["VIPOLYQWEN_DATA_ROOT"] = _absolute(data_root)
    if recipe is not None:
        os.environ["VIPOLYQWEN_RECIPE"] = recipe


def _login_apart(uri: str) -> str:
    """The address of a tracking server without a login, which MLflow takes from variables of its own.

    With it the address would stand in MLflow's messages, and in logs and on pages that show these.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not (parts.username and parts.password):
        return uri
    if not all(os.environ.get(name) for name in MLFLOW_LOGIN):
        os.environ.update(zip(MLFLOW_LOGIN, map(unquote, (parts.username, parts.password)), strict=True))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def lead_children(first: Path | None = None) -> None:
    """Let child processes find the modules that this one finds, whatever the current folder holds.

    `python -m`, by which they are started, would look there first: a `queue.py` or a package `assets` of
    somebody's own project would be taken for the one that is meant.

    Args:
        first: a folder whose packages come before those of PYTHONPATH
    """
    here = any(os.path.isdir(folder or ".") and os.path.samefile(folder or ".", ".") for folder in sys.path)
    if first is not None or not here:
        os.environ["PYTHONSAFEPATH"] = "1"
    if first is not None:
        paths = [str(first), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def serving_environment(workspace: Workspace) -> dict[str, str]:
    """Environment of the servers of the interfaces; MLflow's is told its store here.

    Everybody on the machine can read a program's arguments, and the address of a store may hold a password.
    """
    return os.environ | {"MLFLOW_BACKEND_STORE_URI": workspace.mlflow_uri}


def configure_mlflow_of_training() -> None:
    """Settle how MLflow behaves in a training process, before it is imported."""
    for name, value in MLFLOW_OF_TRAINING.items():
        os.environ.setdefault(name, value)


def hide_loading_bars() -> None:
    """Let transformers show no bar for weights that it reads; call it before transformers is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
