"""The MLflow store of a test: MLflow holds on to the one that it was told last, for the whole process.

Ranks and other processes that a test starts read the environment instead, so both must name the same store.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "MLFLOW_TRACKING_URI"


@contextmanager
def mlflow_store(uri: str) -> Iterator[None]:
    """Use a store in this process and its children."""
    import mlflow  # takes seconds

    with same_store_afterwards():
        mlflow.set_tracking_uri(uri)
        os.environ[VARIABLE] = uri  # where it was told this store already, MLflow leaves the variable alone
        yield


@contextmanager
def same_store_afterwards() -> Iterator[None]:
    """Let MLflow ask the environment again, and this name the store of before."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        if os.environ.get(VARIABLE) != before:
            if "mlflow" in sys.modules:
                sys.modules["mlflow"].set_tracking_uri(None)
            os.environ.pop(VARIABLE, None)
            if before is not None:
                os.environ[VARIABLE] = before


def register_model(model_dir: Path, experiment_id: str, **facts: str) -> Any:
    """Log a model directory to a run of its own in an experiment, and register it."""
    import mlflow

    from vipolyqwen_core.serving.registration import log_registered_model

    with mlflow.start_run(experiment_id=experiment_id) as run:
        pass
    return log_registered_model(model_dir, metadata_=facts, run_id=run.info.run_id, tags={})
