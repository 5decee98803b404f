"""The way of a model directory into MLflow's registry, and back out of it."""

import errno
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from packaging.requirements import Requirement

import vipolyqwen_core
from vipolyqwen_core.contract import REGISTERED_MODEL
from vipolyqwen_core.full_disk import sign_of_full_disk
from vipolyqwen_core.serving import mlflow_model
from vipolyqwen_core.serving.mlflow_model import ARTIFACT, SIGNATURE

logger = logging.getLogger(__name__)


def requirements() -> list[str]:
    """What a server installs: the base dependencies of this package and MLflow, pinned as they are here."""
    declared = (Requirement(line) for line in metadata.requires("vipolyqwen") or ())
    names = [each.name for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*names, "mlflow")]


def log_registered_model(
    model_dir: Path, *, metadata_: Mapping[str, Any], run_id: str, tags: Mapping[str, str]
) -> Any:
    """Log a model directory to a run that exists, and register it as a new version.

    The tracking store is the one that is set. The run is not opened again, which would move its end and let
    a registration that fails end it as failed. The version is created with its `tags`: whatever happens to
    this process next, it can be told where it came from.

    Returns:
        MLflow's ModelInfo: `model_uri`, `registered_model_version` ...
    Raises:
        ValueError: the directory holds no model
        OSError: the disk of temporary files, where MLflow puts the model together, is full
    """
    if not (model_dir / "config.json").is_file():
        raise ValueError(f"{model_dir} is no model directory: it has no config.json")
    client = mlflow.MlflowClient()
    with _full_disk_named():
        remove_unregistered(run_id, tags)
        run = client.get_run(run_id)
        place = client.create_logged_model(
            run.info.experiment_id, "model", source_run_id=run_id, tags=dict(tags), params=run.data.params
        )
        info = Model.log(  # what `mlflow.pyfunc.log_model` does, which knows the open run only
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=place.model_id,
            run_id=run_id,
            python_model=mlflow_model.__file__,
            artifacts={ARTIFACT: str(model_dir)},
            code_paths=[str(Path(vipolyqwen_core.__file__).parent)],
            signature=SIGNATURE,
            pip_requirements=requirements(),
            metadata=dict(metadata_),
        )
    version = mlflow.register_model(info.model_uri, REGISTERED_MODEL, tags=dict(tags))
    info.registered_model_version = version.version
    return info


@contextmanager
def _full_disk_named() -> Iterator[None]:
    """MLflow takes a copy of the code for which there is no room for a code path that cannot be copied.

    Raises:
        OSError: the disk of temporary files is full
    """
    try:
        yield
    except MlflowException as error:
        sign = sign_of_full_disk(error.__cause__ or error)
        if not sign or sign_of_full_disk(error):  # or it says so itself
            raise
        raise OSError(errno.ENOSPC, sign, tempfile.gettempdir()) from error


def remove_unregistered(run_id: str, tags: Mapping[str, str]) -> None:
    """Delete what earlier registrations of a run's model left in the store when they were stopped.

    Each is a copy of the model, whole or half, that no version names: gigabytes, on a disk that may be full.
    What lies elsewhere than on a disk of this machine stays: who may log there may perhaps not delete. No
    other process may be registering the same run meanwhile: the pool of `registered_model` sees to that.

    Args:
        tags: that they were logged with
    """
    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    named = {version.source for version in client.search_model_versions()}
    for model in logged:
        is_own = bool(tags) and tags.items() <= model.tags.items()
        is_named = model.model_uri in named or model.artifact_location in named
        is_here = model.artifact_location.startswith(("file:", "/"))
        if is_own and not is_named and is_here:
            try:
                get_artifact_repository(model.artifact_location).delete_artifacts()
            except OSError as error:  # somebody else's: room is lost, the registration is not
                logger.warning(
                    "%s is needed no more, but cannot be deleted: %s", model.artifact_location, error
                )
                continue
            client.delete_logged_model(model.model_id)


def download_model_directory(number: int, target: Path) -> None:
    """The model directory that a registered version holds, as it was when it was logged, at a new path.

    The registry is the one that is set.

    Raises:
        ValueError: the registry has no such version, or cannot give its files
    """
    uri = f"models:/{REGISTERED_MODEL}/{number}"
    # beside the target and named like it: one rename, and whoever clears what a kill left there finds it
    with tempfile.TemporaryDirectory(".partial", f"{target.name}.", target.parent) as folder:
        try:
            held = mlflow.models.get_model_info(uri).flavors["python_function"]["artifacts"][ARTIFACT]["path"]
            found = mlflow.artifacts.download_artifacts(f"{uri}/{held}", dst_path=folder)
        except (MlflowException, OSError) as error:
            raise ValueError(f"the registry cannot give the files of version {number}: {error}") from error
        os.replace(found, target)
