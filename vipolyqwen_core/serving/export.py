"""Export: vectors of both sides of every pair, as Parquet and as the LanceDB table that search reads.

Sides are encoded without prefix: the everyday use. Only what is new is encoded; rows of pairs that are gone
are deleted. Another model's vectors are made beside the table in use and swapped in at the end, and a killed
export goes on where it was. After an update in place, whoever has the table open can read its old version for
`KEPT_VERSIONS`; a swap deletes the old table at once, so it has to be opened anew.
"""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import FTS, IvfRq, IvfSq
from lancedb.table import Table

from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import EXPORT
from vipolyqwen_core.corpus.tables import arrow_schema, open_parquet, read_batches, refuse_damage
from vipolyqwen_core.file_lock import file_lock
from vipolyqwen_core.full_disk import GOES_ON, sign_of_full_disk
from vipolyqwen_core.serving.current_export import (
    LOCK_FILE,
    STAGING,
    VECTORS_FILE,
    CurrentExport,
    link_current,
)
from vipolyqwen_core.serving.encoding_pool import EncodingPool
from vipolyqwen_core.serving.exported_sides import ExportedSides
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.serving.search import PARTITION_ROWS, TABLE
from vipolyqwen_core.serving.table_update import damage_named, update_table
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

KEPT_VERSIONS: Final = timedelta(days=7)
"""How long the table as it was before an update in place can still be read: an open handle stays with its
version. Files of an older one are removed by the next export. Not so where another model version, a new
champion or a rollback, is swapped in: a second copy of the vectors doubles the disk."""
AT_ONCE: Final = timedelta(milliseconds=1)
"""In place of it where a table was made aside, which nobody reads yet. LanceDB warns of 0."""
PARQUET_ROWS: Final = 16_384
CONTENT: Final = b"content"
"""Key of the Parquet file's metadata for the digest of the rows that it holds."""


@dataclass(frozen=True)
class ExportSummary:
    """What an export did."""

    model_version: str
    rows: int
    """Rows of the table."""
    encoded: int
    """Rows whose vector was computed."""
    kept: int
    """Rows that stood already."""
    updated: int
    """Rows that kept their vector but changed their split or their place."""
    deleted: int
    """Rows of pairs that are gone, and what a killed export had left behind."""
    reused: bool
    """Whether nothing had changed."""
    indexed: bool
    """Whether the table has a vector index; without one a search compares every row."""
    parquet: Path
    table: Path
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows under version {self.model_version} in {self.seconds:.0f} s: {self.encoded} "
            f"encoded, {self.kept} kept, {self.updated} updated, {self.deleted} deleted"
        )


def export(
    training_set: Path, model: Path, model_version: str, workspace: Workspace, settings: ExportSettings
) -> ExportSummary:
    """Bring the exported table up to date with a training set under a model version.

    Raises:
        ValueError: there is no training set, no model, the version cannot name a folder, the table is
            damaged, or another process exports; names it
        OSError: it cannot be written, for example because the disk is full
    """
    started = time.monotonic()
    if not re.fullmatch(r"\w[\w.+-]*", model_version) or model_version == workspace.lancedb.name:
        raise ValueError(f"model version {model_version!r} cannot name a folder: give a number or a word")
    schema = export_schema(model, model_version)
    folder = workspace.exports / model_version
    parquet = folder / VECTORS_FILE
    with _alone(workspace.exports), _full_disk_named(workspace.exports):
        staging: Path | None = None
        table = _matching_table(workspace.lancedb, schema)
        if table is None:
            staging = folder / STAGING
            table = _staged_table(staging, parquet, schema)
        with EncodingPool(model, settings) as pool:
            update = update_table(table, ExportedSides(training_set), pool)
        metadata = {**schema.metadata, CONTENT: update.content}
        # also where the update before this one was killed too soon
        is_stale = update.changed or _metadata(parquet) != metadata
        wanted = _wanted_indices(table, settings)
        complete = all(_is_indexed(table, column) for column in wanted)
        if is_stale or not complete:
            _index(table, wanted)
        # many small files become few large ones; and time has passed, also where nothing has changed
        table.optimize(cleanup_older_than=KEPT_VERSIONS if staging is None else AT_ONCE)
        if is_stale:
            _write_parquet(table, parquet, metadata)
        rows, indexed = table.count_rows(), _is_indexed(table, "embedding")
        digest = schema.metadata[b"model_digest"].decode()
        current = CurrentExport(model_version, str(model.resolve()), digest, rows, str(parquet))
        _put_in_use(current, staging, workspace)
    summary = ExportSummary(
        model_version=model_version,
        rows=rows,
        encoded=update.encoded,
        kept=rows - update.encoded - update.updated,
        updated=update.updated,
        deleted=update.deleted,
        reused=staging is None and complete and not update.changed,
        indexed=indexed,
        parquet=parquet,
        table=workspace.lancedb / f"{TABLE}.lance",
        seconds=time.monotonic() - started,
    )
    logger.info("exported %s", summary)
    return summary


@contextmanager
def _alone(exports: Path) -> Iterator[None]:
    """One export at a time: two would both add a row that is missing, and neither delete the other's.

    Raises:
        ValueError: another process is at it; names it
    """
    exports.mkdir(parents=True, exist_ok=True)
    with (exports / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if (holder := file_lock(file)) is not None:
            raise ValueError(f"process {holder} exports into {exports}: wait for it, or stop it")
        yield


@contextmanager
def _full_disk_named(exports: Path) -> Iterator[None]:
    """What LanceDB raises where the disk is full says so, and what helps, without places in its source.

    Raises:
        OSError: the disk is full
    """
    try:
        yield
    except RuntimeError as error:
        if not (sign := sign_of_full_disk(error)):
            raise
        helps = f"make room: what was encoded is kept, and {GOES_ON}"
        raise OSError(errno.ENOSPC, f"{sign}; {helps}", str(exports)) from error


def _put_in_use(current: CurrentExport, staging: Path | None, workspace: Workspace) -> None:
    """Write which export this is beside its table, and swap both in where the table was made aside.

    The link comes first: killed in between, a workspace must not pass for one that never exported.
    """
    current.write(staging or workspace.lancedb, workspace)
    link_current(workspace)
    if staging is not None:
        with written_aside(workspace.lancedb) as aside:
            os.replace(staging, aside)


def export_schema(model: Path, model_version: str) -> pa.Schema:
    """The contract's columns with the model's dimension; the metadata name the model.

    Raises:
        ValueError: the directory holds no model
    """
    config = model / "config.json"
    if not config.is_file():
        raise ValueError(f"{model} is no model directory: it has no config.json")
    dim = int(json.loads(config.read_text(encoding="utf-8"))["embedding_dim"])
    schema = arrow_schema(EXPORT)
    place = schema.get_field_index("embedding")
    schema = schema.set(place, pa.field("embedding", pa.list_(pa.float32(), dim)))
    return schema.with_metadata({"model_version": model_version, "model_digest": model_digest(model)})


def _matching_table(folder: Path, schema: pa.Schema) -> Table | None:
    """The table in a LanceDB folder, where it was made by the same model with the same columns.

    Raises:
        ValueError: it is damaged
    """
    place = folder / f"{TABLE}.lance"
    if not place.is_dir():
        return None
    with damage_named(place):
        table = lancedb.connect(folder).open_table(TABLE)
    return table if table.schema.equals(schema, check_metadata=True) else None


def _staged_table(staging: Path, parquet: Path, schema: pa.Schema) -> Table:
    """A table beside the one in use: what a killed export left, or what this version exported before.

    One without rows is filled from the Parquet file, in one commit: a kill in between loses no vector.
    """
    table = _matching_table(staging, schema)
    if table is None:
        with written_aside(staging) as aside:  # a half one would pass for a table that is damaged
            lancedb.connect(aside).create_table(TABLE, schema=schema)
        table = lancedb.connect(staging).open_table(TABLE)
    if schema.metadata.items() <= _metadata(parquet).items() and table.count_rows() == 0:
        batches = (batch.cast(schema) for batch in read_batches(parquet, PARQUET_ROWS))
        try:
            table.add(pa.RecordBatchReader.from_batches(schema, batches))
        except RuntimeError:  # what a generator raises comes through Arrow's stream with its traceback
            refuse_damage(parquet)
            raise
    return table


def _is_indexed(table: Table, column: str) -> bool:
    return any(column in index.columns for index in table.list_indices())


def _wanted_indices(table: Table, settings: ExportSettings) -> dict[str, FTS | IvfRq | IvfSq]:
    """Column -> index: full text on the text, vectors where the table is large; none where it is empty."""
    rows = table.count_rows()
    if rows == 0:
        return {}
    words = FTS(base_tokenizer="icu", stem=False, remove_stop_words=False, ascii_folding=True)
    if rows < settings.index_min_rows:
        return {"text": words}
    return {"text": words, "embedding": _vector_index(table.schema.field("embedding").type.list_size)}


def _index(table: Table, wanted: dict[str, FTS | IvfRq | IvfSq]) -> None:
    """Make the indices that lack; `optimize` adds to those that stand what was added to the table.

    One that lacks more rows than it has is made anew: that takes less time, and its partitions fit the rows.
    """
    names = {index.columns[0]: index.name for index in table.list_indices()}
    for column, config in wanted.items():
        found = table.index_stats(names[column]) if column in names else None
        if found is None or found.num_unindexed_rows > found.num_indexed_rows:
            table.create_index(column, config=config, replace=True)


def _vector_index(dim: int) -> IvfRq | IvfSq:
    """Partitions of vectors of one bit a dimension (RaBitQ, Gao and Long 2024); search compares whole ones.

    A graph (HNSW) finds as much, but takes 30 to 80 times as long to make and some nine times the space:
    `python -m tests.benchmarks vector_index` shows both.
    """
    kind = IvfRq if dim % 8 == 0 else IvfSq  # the one knows whole bytes only
    return kind(distance_type="cosine", target_partition_size=PARTITION_ROWS)


def _write_parquet(table: Table, path: Path, metadata: dict[bytes, bytes]) -> None:
    schema = table.schema.with_metadata(metadata)
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd") as writer,
    ):
        for batch in table.to_lance().to_batches(batch_size=PARQUET_ROWS):
            writer.write_batch(batch.cast(schema))


def _metadata(parquet: Path) -> dict[bytes, bytes]:
    """What a Parquet file says of its model and its rows; nothing where it is absent.

    Raises:
        ValueError: it is damaged
    """
    if not parquet.is_file():
        return {}
    with open_parquet(parquet) as file:
        return dict(file.schema_arrow.metadata or {})
