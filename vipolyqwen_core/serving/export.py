"""Export: vectors of both sides of every pair, as Parquet and as the LanceDB table that search reads.

Sides are encoded without prefix: the everyday use. Only what is new is encoded; rows of pairs that are gone
are deleted. Another model's vectors are made beside the table in use and swapped in at the end, and a killed
export goes on where it was.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import FTS, IvfHnswSq
from lancedb.table import Table

from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import EXPORT
from vipolyqwen_core.corpus.tables import arrow_schema, written_aside
from vipolyqwen_core.serving.current_export import CurrentExport
from vipolyqwen_core.serving.encoder import Vectors, ViPolyQwenEmbedder
from vipolyqwen_core.serving.exported_sides import IDENTITY, KEY, ExportedSides, Hashes, SideBlock, row_hashes
from vipolyqwen_core.serving.search import TABLE
from vipolyqwen_core.workspace import Workspace

logger = logging.getLogger(__name__)

STAGING: Final = "staging"
"""Folder of a table that is still being made, below the folder of its version."""
DELETED_AT_ONCE: Final = 1000
PARQUET_ROWS: Final = 16_384


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
    """Rows of pairs that are gone."""
    indexed: bool
    """Whether the table has a vector index; without one a search compares every row."""
    parquet: Path
    table: Path
    seconds: float

    @property
    def reused(self) -> bool:
        """Whether nothing had changed."""
        return not (self.encoded or self.updated or self.deleted)


def export(
    training_set: Path, model: Path, model_version: str, workspace: Workspace, settings: ExportSettings
) -> ExportSummary:
    """Bring the exported table up to date with a training set under a model version.

    Raises:
        ValueError: there is no training set, no model, or the version cannot name a folder
    """
    started = time.monotonic()
    if not re.fullmatch(r"\w[\w.+-]*", model_version) or model_version == workspace.lancedb.name:
        raise ValueError(f"model version {model_version!r} cannot name a folder: give a number or a word")
    schema = export_schema(model, model_version)
    folder = workspace.exports / model_version
    parquet = folder / "embeddings.parquet"
    table = _matching_table(workspace.lancedb, schema)
    in_place = table is not None
    if table is None:
        table = _staged_table(folder, schema)
    update = _Update(table, ExportedSides(training_set), model, settings.batch_tokens)
    update.run()
    if update.changed or not _is_indexed(table, "text"):
        _index(table, settings)
    if update.changed or not parquet.is_file():
        _write_parquet(table, parquet)
    if not in_place:
        with written_aside(workspace.lancedb) as aside:
            os.replace(folder / STAGING, aside)
        table = lancedb.connect(workspace.lancedb).open_table(TABLE)
    rows = table.count_rows()
    digest = schema.metadata[b"model_digest"].decode()
    CurrentExport(model_version, str(model.resolve()), digest, rows, str(parquet)).write(workspace)
    summary = ExportSummary(
        model_version=model_version,
        rows=rows,
        encoded=update.encoded,
        kept=rows - update.encoded - update.updated,
        updated=update.updated,
        deleted=update.deleted,
        indexed=_is_indexed(table, "embedding"),
        parquet=parquet,
        table=workspace.lancedb / f"{TABLE}.lance",
        seconds=time.monotonic() - started,
    )
    logger.info(
        "exported %d rows under version %s in %.0f s: %d encoded, %d kept, %d updated, %d deleted",
        *(
            rows,
            model_version,
            summary.seconds,
            summary.encoded,
            summary.kept,
            summary.updated,
            summary.deleted,
        ),
    )
    return summary


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


def model_digest(model: Path) -> str:
    """32 hex digits: hash of the files that decide a vector. A version with other files is another model."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(model.iterdir()):
        if path.name in ("config.json", "tokenizer.json", "preprocessor_config.json") or (
            path.suffix == ".safetensors"
        ):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _matching_table(folder: Path, schema: pa.Schema) -> Table | None:
    """The table in a LanceDB folder, where it was made by the same model with the same columns."""
    if not (folder / f"{TABLE}.lance").is_dir():
        return None
    table = lancedb.connect(folder).open_table(TABLE)
    return table if table.schema.equals(schema, check_metadata=True) else None


def _staged_table(folder: Path, schema: pa.Schema) -> Table:
    """A table beside the one in use: what a killed export left, or what this version exported before."""
    staging = folder / STAGING
    table = _matching_table(staging, schema)
    if table is not None:
        return table
    shutil.rmtree(staging, ignore_errors=True)
    table = lancedb.connect(staging).create_table(TABLE, schema=schema)
    parquet = folder / "embeddings.parquet"
    if parquet.is_file():
        with pq.ParquetFile(parquet) as file:
            if file.schema_arrow.metadata == schema.metadata:
                batches = (batch.cast(schema) for batch in file.iter_batches(PARQUET_ROWS))
                table.add(pa.RecordBatchReader.from_batches(schema, batches))
    return table


class _Update:
    """Makes a table hold exactly the sides of a training set, and counts what it took."""

    def __init__(self, table: Table, wanted: ExportedSides, model: Path, batch_tokens: int) -> None:
        self.table, self.wanted, self.model, self.batch_tokens = table, wanted, model, batch_tokens
        self.model_version = table.schema.metadata[b"model_version"].decode()
        self.encoded = self.updated = self.deleted = 0

    @property
    def changed(self) -> bool:
        """Whether the table is another than before."""
        return bool(self.encoded or self.updated or self.deleted)

    def run(self) -> None:
        """Delete what is gone, then add what is missing, block by block."""
        self._delete_gone()
        keys, identities = self._present()
        for block in self.wanted.blocks():
            missing = np.flatnonzero(~_is_among(row_hashes(block.rows, IDENTITY), identities))
            if len(missing):
                known = _is_among(row_hashes(block.rows, KEY)[missing], keys)
                self._replace(block, missing[known])
                self._add(block, missing[~known])

    @cached_property
    def _embedder(self) -> ViPolyQwenEmbedder:
        return ViPolyQwenEmbedder.from_pretrained(self.model)

    def _scan(self, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        for batch in self.table.to_lance().to_batches(columns=list(columns)):
            yield pa.Table.from_batches([batch])

    def _present(self) -> tuple[Hashes, Hashes]:
        """Keys and identities of the rows that stand, each sorted."""
        found = [(row_hashes(rows, KEY), row_hashes(rows, IDENTITY)) for rows in self._scan(IDENTITY)]
        if not found:
            return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
        keys, identities = zip(*found, strict=True)
        return np.sort(np.concatenate(keys)), np.sort(np.concatenate(identities))

    def _delete_gone(self) -> None:
        wanted = [row_hashes(block.rows, KEY) for block in self.wanted.blocks()]
        keys = np.sort(np.concatenate(wanted)) if wanted else np.empty(0, dtype=np.uint64)
        gone: list[tuple[str, str]] = []
        for rows in self._scan(KEY):
            lost = np.flatnonzero(~_is_among(row_hashes(rows, KEY), keys))
            gone += [(rows["sample_id"][i].as_py(), rows["side"][i].as_py()) for i in lost]
        self._delete(gone)
        self.deleted = len(gone)

    def _delete(self, rows: list[tuple[str, str]]) -> None:
        for side in sorted({side for _, side in rows}):
            ids = [sample_id for sample_id, of in rows if of == side]
            for start in range(0, len(ids), DELETED_AT_ONCE):
                self.table.delete(_where(side, ids[start : start + DELETED_AT_ONCE]))

    def _replace(self, block: SideBlock, places: np.ndarray) -> None:
        """Rows whose pair changed its split or its place: the vector stays."""
        if len(places) == 0:
            return
        rows = block.rows.take(pa.array(places))
        ids, side = rows["sample_id"].to_pylist(), rows["side"][0].as_py()
        found = (
            self.table.search().where(_where(side, ids)).select(["sample_id", "embedding"]).limit(len(ids))
        ).to_arrow()
        order = {sample_id: i for i, sample_id in enumerate(found["sample_id"].to_pylist())}
        vectors = _matrix(found["embedding"])[[order[sample_id] for sample_id in ids]]
        self._delete([(sample_id, side) for sample_id in ids])
        self._write(rows, vectors)
        self.updated += len(places)

    def _add(self, block: SideBlock, places: np.ndarray) -> None:
        """New rows; a content that several of them share is encoded once."""
        if len(places) == 0:
            return
        _, first, number = np.unique(block.content[places], return_index=True, return_inverse=True)
        items = block.sides.items(block.request(int(place)) for place in places[first])
        vectors = self._embedder.encode_items(items, self.batch_tokens)
        self._write(block.rows.take(pa.array(places)), vectors[number])
        self.encoded += len(places)
        logger.info("encoded %d rows", self.encoded)

    def _write(self, rows: pa.Table, vectors: Vectors) -> None:
        columns = {name: rows[name] for name in rows.column_names}
        columns["model_version"] = pa.array([self.model_version] * rows.num_rows, pa.large_string())
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self.table.add(pa.table(columns, schema=self.table.schema))


def _is_among(hashes: Hashes, known: Hashes) -> np.ndarray:
    """Which hashes are among sorted ones. `np.isin` would sort the millions anew for each block."""
    if len(known) == 0:
        return np.zeros(len(hashes), dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)


def _where(side: str, sample_ids: list[str]) -> str:
    """SQL for some rows; ids are hex digits of our own making."""
    return f"side = '{side}' AND sample_id IN ({', '.join(repr(sample_id) for sample_id in sample_ids)})"


def _matrix(column: pa.ChunkedArray) -> Vectors:
    dim = column.type.list_size
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(-1, dim)


def _is_indexed(table: Table, column: str) -> bool:
    return any(column in index.columns for index in table.list_indices())


def _index(table: Table, settings: ExportSettings) -> None:
    """Full-text index on the text, vector index where the table is large; what was added joins both."""
    rows = table.count_rows()
    if rows == 0:
        return
    if not _is_indexed(table, "text"):
        words = FTS(base_tokenizer="icu", stem=False, remove_stop_words=False, ascii_folding=True)
        table.create_index("text", config=words)
    if rows >= settings.index_min_rows and not _is_indexed(table, "embedding"):
        table.create_index("embedding", config=IvfHnswSq(distance_type="cosine"))
    table.optimize()


def _write_parquet(table: Table, path: Path) -> None:
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(aside, table.schema, compression="zstd") as writer,
    ):
        for batch in table.to_lance().to_batches(batch_size=PARQUET_ROWS):
            writer.write_batch(batch)
