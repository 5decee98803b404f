"""MLflow's database in a workspace names places absolutely, so it has to follow where that is moved."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that name places of artifacts."""


def follow_move(database: Path, experiment: str, artifacts: Path) -> None:
    """Let a database name the artifacts where they are now, if they were in another workspace before.

    MLflow would read and write them there: where nothing is any more, or in the workspace of a copy's origin.
    A place that somebody chose for the experiment, such as a bucket, stays.

    Raises:
        ValueError: the database is damaged, as after a power cut, or cannot be used for another reason
    """
    if not database.is_file():
        return
    try:
        _follow_move(database, experiment, artifacts)
    except sqlite3.DatabaseError as error:
        reason = f"MLflow's database {database} cannot be used ({error})"
        if not isinstance(error, sqlite3.OperationalError):  # as where the disk is full
            reason += ": restore it from a backup"
        raise ValueError(reason) from error


def _follow_move(database: Path, experiment: str, artifacts: Path) -> None:
    """The same, where the database is there and whole."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not tables.issuperset(table for table, _ in PLACES):
            return  # MLflow was stopped while it made them, or they are an older one's: it completes them
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", [experiment])
        before, now = next(found, ("",))[0], artifacts.as_uri()
        is_local = before.startswith(("file:", "/"))
        if before == now or not is_local or not before.endswith(f"/{artifacts.name}"):
            return
        for table, column in PLACES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
            )
