"""What assets are handed: the workspace, the manifest, the recipe, MLflow. Settings in, objects out."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import dagster as dg
from pydantic import PrivateAttr

from assets.moved_store import follow_move
from vipolyqwen_core.config import EvaluationSettings, Recipe
from vipolyqwen_core.contract import EXPERIMENT
from vipolyqwen_core.corpus.manifest import Manifest, check_name, load_manifest
from vipolyqwen_core.mlflow_database import make_mlflow_database
from vipolyqwen_core.mlflow_name import mlflow_name
from vipolyqwen_core.recipes import load_recipe
from vipolyqwen_core.workspace import Workspace, is_served, without_login

MAX_BATCH = 1000
"""Metrics that MLflow takes at once."""
ANSWER_SECONDS = 10
"""Time in which a server shows that it is there."""


class WorkspaceResource(dg.ConfigurableResource[Workspace]):
    """The folder that everything is written below."""

    home: str

    def open(self) -> Workspace:
        """The workspace's paths."""
        return Workspace(Path(self.home))


def _load_manifest(path: str | None, home: str) -> Manifest:
    if path is not None:
        return load_manifest(path)
    from vipolyqwen_core.corpus.demo import write_demo_corpus

    folder = Workspace(Path(home)).demo_corpus
    return load_manifest(write_demo_corpus(folder), root=folder)


class ManifestResource(dg.ConfigurableResource[Manifest]):
    """The sources: a manifest file, or the built-in demo corpus. A run keeps what its first step read."""

    path: str | None
    home: str
    _load: Callable[[str | None, str], Manifest] = PrivateAttr(default_factory=lambda: _load_manifest)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Dagster calls this on a copy, at the start of a run."""
        self._load = cache(_load_manifest)

    def load(self) -> Manifest:
        """The manifest; the demo corpus is written first where it is asked for and absent.

        Raises:
            ValueError: names the file, the source, the key and what was expected
        """
        return self._load(self.path, self.home)

    def own_checks(self) -> tuple[str, ...]:
        """Names under which suites of the manifest's `expectations` report.

        Raises:
            ValueError: the manifest is wrong
        """
        if self.path is None:
            return ()
        return tuple(check_name(entry) for entry in load_manifest(self.path).expectations)

    def names(self) -> tuple[str, ...]:
        """Names of the sources, without writing anything.

        Raises:
            ValueError: the manifest is wrong
        """
        if self.path is not None:
            return load_manifest(self.path).names
        from vipolyqwen_core.corpus.demo.files import SOURCE_FILES

        return tuple(source.name for source in SOURCE_FILES)


class RecipeResource(dg.ConfigurableResource[Recipe]):
    """All settings of a run, by the name of a recipe. It keeps what its first step read: a recipe that is
    changed while a model trains would leave that model without evaluation."""

    name: str
    _load: Callable[[str], Recipe] = PrivateAttr(default_factory=lambda: load_recipe)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Dagster calls this on a copy, at the start of a run."""
        self._load = cache(load_recipe)

    def load(self) -> Recipe:
        """The recipe.

        Raises:
            ValueError: no such recipe
        """
        return self._load(self.name)


class MlflowResource(dg.ConfigurableResource["MlflowResource"]):
    """Tracking and registry: the store of a workspace, or the one that MLFLOW_TRACKING_URI names.

    That is no setting of the resource, which Dagster's pages show: it may hold a password.
    """

    home: str

    @property
    def place(self) -> Workspace:
        """The workspace."""
        return Workspace(Path(self.home))

    def connect(self) -> Any:
        """MLflow's client; the process's default is settled too, and the experiment is there.

        Raises:
            ValueError: the server does not answer; MLflow has tried for minutes. Or MLFLOW_TRACKING_URI
                names no store that MLflow can use
        """
        import mlflow
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        uri = self.place.mlflow_uri
        mlflow.set_tracking_uri(uri)
        self.prepare_own()
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
        except (MlflowException, SQLAlchemyError, ImportError) as error:  # the last: of a database's driver
            self.refuse_silence()
            if uri == self.place.own_mlflow_uri:
                raise
            reason = without_login(next(iter(str(error).strip().splitlines()), type(error).__name__))
            if is_served(uri):
                raise ValueError(
                    f"the server at {without_login(uri)}, which MLFLOW_TRACKING_URI names, does not let "
                    f"MLflow in, or is none of MLflow's ({reason}): look at the login and the address"
                ) from error
            raise ValueError(
                f"MLflow cannot use {without_login(uri)}, which MLFLOW_TRACKING_URI names ({reason}): give "
                "the address of its server, http://HOST:PORT, or unset the variable for the workspace's own "
                "store"
            ) from error
        if experiment is None:
            artifacts = None if is_served(uri) else self.place.mlflow_artifacts.as_uri()
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        return client

    def prepare(self) -> None:
        """Make sure of the store before work is begun that will need it hours later.

        Raises:
            ValueError: the server does not answer, or MLflow cannot use the store, or the workspace's own
                database is damaged, or MLflow finds no home folder
        """
        self.refuse_silence()
        self.prepare_own()
        if self.place.mlflow_uri != self.place.own_mlflow_uri:
            self.connect()

    def prepare_own(self) -> None:
        """Make the workspace's own store where it has none, and let it name its artifacts where they are.

        Any other store stays as it is.

        Raises:
            ValueError: it is damaged, or MLflow finds no home folder
        """
        refuse_homeless()
        place = self.place
        if place.mlflow_uri == place.own_mlflow_uri:
            make_mlflow_database(place.mlflow_database)
            follow_move(place.mlflow_database, EXPERIMENT, place.mlflow_artifacts)

    def refuse_silence(self) -> None:
        """Refuse a server that does not answer, whatever it answers, at once.

        Raises:
            ValueError: it does not answer
        """
        uri = self.place.mlflow_uri
        if not uri.startswith(("http://", "https://")):
            return
        try:
            with urlopen(uri, timeout=ANSWER_SECONDS):
                pass
        except HTTPError:  # it wants a login, say, which MLflow's client may have
            pass
        except OSError as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise ValueError(
                f"MLflow does not answer at {without_login(uri)}, which MLFLOW_TRACKING_URI names "
                f"({reason}): start its server, or unset the variable for the workspace's own store"
            ) from error

    def log_evaluation(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        settings: EvaluationSettings,
        folder: Path,
        place: str = "evaluation",
    ) -> None:
        """Log metrics, the report and its files (under `place`) into a run that has ended.

        The settings become tags, which the next evaluation of the run may change.
        """
        from mlflow import entities

        client, now = self.connect(), int(time.time() * 1000)
        logged = [entities.Metric(mlflow_name(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(logged), MAX_BATCH):
            client.log_batch(run_id, metrics=logged[start : start + MAX_BATCH])
        tags = [
            entities.RunTag(f"recipe.evaluation.{name}", str(value))
            for name, value in asdict(settings).items()
        ]
        client.log_batch(run_id, tags=tags)
        client.log_artifacts(run_id, str(folder), place)

    def refuse_unknown_run(self, run_id: str, folder: Path) -> None:
        """Refuse a training run whose MLflow run the store does not have.

        Raises:
            dagster.Failure: it was trained under another store, or the run was deleted
        """
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        try:
            found = self.connect().get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise dg.Failure(
                f"MLflow has no run {run_id}, which {folder} was trained as: restore mlflow.db, or let "
                "MLFLOW_TRACKING_URI name the store of that training; or remove the folder to train it anew"
            ) from error
        if found.info.lifecycle_stage == LifecycleStage.DELETED:  # it can still be read, but not be added to
            raise dg.Failure(
                f"the run {run_id} of MLflow, which {folder} was trained as, was deleted: restore it there "
                "(`mlflow runs restore`), or remove the folder to train it anew"
            )

    def run_link(self, run_id: str, artifact: str = "") -> dg.MetadataValue[str]:
        """Page of a run in MLflow's UI, or of one of its artifacts."""
        experiment = self.connect().get_run(run_id).info.experiment_id
        uri = self.place.mlflow_uri
        base = without_login(uri) if uri.startswith("http") else self.place.mlflow_ui
        page = f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
        return dg.MetadataValue.url(f"{page}/artifacts/{artifact}" if artifact else page)


def refuse_homeless() -> None:
    """Refuse a user without a home folder, which MLflow asks for when it is imported.

    Raises:
        ValueError: HOME is not set, and the system does not know the user, as in a container
    """
    try:
        Path.home()
    except RuntimeError as error:
        raise ValueError(
            f"user {os.getuid()} has no home folder, which MLflow asks for: set HOME to a folder that this "
            "user may write"
        ) from error


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that a folder lies in, with `-dirty` where files differ; None: no checkout.

    Also where the checkout is another user's, which git would refuse: one mounted into a container.
    """
    trusted = ["-c", "safe.directory=*"]  # its code runs already
    described = ["describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    command = ["git", *trusted, "-C", str(folder), *described]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (
        FileNotFoundError,
        subprocess.TimeoutExpired,
    ):  # no git here, or a file system that does not answer
        return None
    return result.stdout.strip() if result.returncode == 0 else None
