"""The MLflow store of a test: MLflow holds on to the one that it was told last, for the whole process.

Ranks and other processes that a test starts read the environment instead, so both must name the same store.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MLFLOW_TRACKING_URI"


@contextmanager
def mlflow_store(uri: str) -> Iterator[None]:
    """Use a store in this process and its children; afterwards MLflow asks the environment again."""
    import mlflow  # takes seconds

    before = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)
    os.environ[VARIABLE] = uri  # where it was told this store already, MLflow leaves the variable alone
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
