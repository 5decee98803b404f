"""Stage `curated`: from the files of a source to clean, distinct pairs, and a ledger of the rest.

Records stream through in batches: normalised, judged by the row rules, written to shards. Then duplicates
are found over the shards on disk, and what is left is written in the order of the files.

    curated/<source>/pairs.parquet       PAIR, sorted by position
    curated/<source>/ledger.parquet      LEDGER: records under stage `read`, pairs under `curated`
    curated/<source>/copied_links.parquet    groups and dialogues of dropped copies, see `copied_links.py`
    curated/<source>/pictures.parquet    every picture path that was read, with its file's version then
    curated/<source>/source.json         the source as the manifest describes it, without logins, for `trace`
    curated/<source>/stage.json          StageSummary; details: languages, tasks, images
    images/<source>.lance                IMAGE_STORE, a new version; old ones go when nothing points into them
"""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from quality.copied_links import COPIED_LINKS, copied_links
from quality.intake import PictureIntake, normalised_rows, references_of
from quality.ledger import (
    LEDGER_SCHEMA,
    READ_STAGE,
    missing_pairs,
    missing_records,
    rejected_pairs,
    write_ledger,
)
from quality.picture_files import paths_digest, read_digest
from quality.pinned_images import remove_unpinned
from quality.polars_tables import count_rows, count_values, polars_schema
from quality.row_duplicates import find_duplicates
from vipolyqwen_core.config import CurationSettings, to_json
from vipolyqwen_core.contract import PAIR
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.image_store import is_stored, write_images
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import (
    RawPair,
    Record,
    adapter_digest,
    check_source,
    files_fingerprint,
    read_source,
)
from vipolyqwen_core.corpus.tables import StageSummary, unchanged_stage
from vipolyqwen_core.corpus.without_secrets import unsigned, without_secrets
from vipolyqwen_core.grouped import grouped
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

STAGE = "curated"
TABLES = ("pairs.parquet", "ledger.parquet", COPIED_LINKS)
CODE_VERSION = 24
"""Raise it when the same input gives another result: earlier results are then made anew."""
BATCH_PAIRS = 10_000
BATCH_BYTES = 256 * 1024 * 1024
"""Long texts, a character of which counts as one, and pictures in the rows themselves fill a batch sooner."""
ROW_GROUP = 50_000
SOURCE_FILE = "source.json"
UNREAD_FIELDS = frozenset({"license", "weight", "off_limits"})
"""What of a source does not decide its pairs."""


def curate(source: Source, settings: CurationSettings, workspace: Workspace) -> StageSummary:
    """Read, normalise and judge a source; reuse what stands where nothing has changed.

    Raises:
        ValueError: the source cannot be read at all: no file, an empty one, the wrong format, a wrong key
    """
    started = time.monotonic()
    files = check_source(source, settings.dialogue_turns)
    folder = workspace.curated(source.name)
    names = sorted({field.name for field in fields(source)} - UNREAD_FIELDS)
    placed = source.placed(unsigned)  # a link that is signed anew is the same one
    read = [(name, getattr(placed, name)) for name in names]
    inputs = read, adapter_digest(source), files_fingerprint(files)
    base = fingerprint(STAGE, CODE_VERSION, *inputs, to_json(settings))
    root = ImageRoot(source.image_root)
    mark = fingerprint(base, paths_digest(root, folder / "pictures.parquet"))
    summary = unchanged_stage(folder, mark, TABLES)
    if summary is not None and is_stored(summary.details["images"]):
        logger.info("%s: unchanged, %d pairs", source.name, summary.pairs_out)
        _remove_old_pictures(source.name, workspace)
        return summary
    with written_aside(folder) as aside:
        aside.mkdir()
        shards = Shards(aside / "shards")
        pictures = PictureIntake(root, settings.max_image_pixels, aside)
        try:
            images = _read(source, settings, pictures, shards, workspace)
        finally:
            pictures.close()
        shards.write_pictures(aside / "pictures.parquet")
        duplicates = find_duplicates(shards.kept(), settings, aside / "bands")
        _write_pairs(shards, duplicates, aside)
        rejected = _write_ledger(shards, duplicates, source.name, aside)
        copied_links(shards.kept(), duplicates, settings).write_parquet(aside / COPIED_LINKS)
        shards.remove()
        summary = StageSummary(
            stage=STAGE,
            fingerprint=fingerprint(base, read_digest(root, aside / "pictures.parquet")),
            data_version=content_digest([aside / name for name in TABLES]),
            pairs_in=shards.pairs,
            pairs_out=count_rows(pl.scan_parquet(aside / "pairs.parquet")),
            rejected=rejected,
            records=shards.records,
            records_with_pairs=shards.records_with_pairs,
            records_rejected=dict(shards.records_rejected.most_common()),
            seconds=time.monotonic() - started,
            details={
                **_details(aside / "pairs.parquet"),
                "images": images,
                "dialogue_turns": settings.dialogue_turns,
            },
        )
        assert missing_records(summary) == 0, summary
        assert missing_pairs(summary) == 0, summary
        (aside / SOURCE_FILE).write_text(to_json(source.placed(without_secrets)), encoding="utf-8")
        summary.write(aside)
    _remove_old_pictures(source.name, workspace)
    logger.info(
        "%s: %d records, %d pairs, %d kept in %.0f s",
        source.name, summary.records, summary.pairs_in, summary.pairs_out, summary.seconds,
    )  # fmt: skip
    return summary


def _remove_old_pictures(source: str, workspace: Workspace) -> None:
    """Clean the image store. The curation stands by then, so what cannot be removed waits for the next."""
    try:
        remove_unpinned(source, workspace)
    except (OSError, ValueError) as error:  # Lance raises either where it cannot read or delete
        logger.warning("%s: old versions of its pictures were not removed: %s", source, error)


class Shards:
    """What has been read so far, on disk: pairs with or without a rule, and rejected records."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.records = 0
        self.records_with_pairs = 0
        self.pairs = 0
        self.records_rejected: Counter[str] = Counter()
        self.is_sorted = True
        self._last = ("", 0, -1)
        self._number = 0

    def add(self, records: list[Record], rows: pl.DataFrame, paths: list[tuple[str, str]]) -> None:
        """Write a batch; of the pictures, paths and versions."""
        unread = [record for record in records if record.rejection is not None]
        self.records += len(records)
        self.records_with_pairs += rows.select("file", "line").n_unique()
        self.records_rejected.update(record.rejection.rule for record in unread if record.rejection)
        numbered = rows.with_columns(row=pl.int_range(self.pairs, self.pairs + rows.height, dtype=pl.Int64))
        self.pairs += rows.height
        for position in rows.select("file", "line", "item").iter_rows():
            self.is_sorted &= position > self._last
            self._last = position
        name = f"{self._number:06}.parquet"
        numbered.write_parquet(self.folder / f"pairs_{name}", compression="lz4")
        _ledger_of_records(unread).write_parquet(self.folder / f"records_{name}")
        versions = pl.DataFrame(paths, schema={"path": pl.String, "version": pl.String}, orient="row")
        versions.write_parquet(self.folder / f"paths_{name}")
        self._number += 1

    def _scan(self, kind: str) -> pl.LazyFrame:
        return pl.scan_parquet(sorted(self.folder.glob(f"{kind}_*.parquet")))

    def kept(self) -> pl.LazyFrame:
        """Pairs that no rule rejected."""
        return self._scan("pairs").filter(pl.col("rule").is_null())

    def rejected(self) -> pl.LazyFrame:
        """Pairs that a rule rejected."""
        return self._scan("pairs").filter(pl.col("rule").is_not_null())

    def unread(self) -> pl.LazyFrame:
        """Ledger lines of records that gave no pair, without their source."""
        return self._scan("records")

    def write_pictures(self, path: Path) -> None:
        """Write the paths of all pictures that were asked for."""
        self._scan("paths").sink_parquet(path)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)


def _ledger_of_records(records: list[Record]) -> pl.DataFrame:
    lines = [
        (READ_STAGE, None, None, found.rule, found.reason, found.value, record.file, record.line, None)
        for record in records
        if (found := record.rejection) is not None
    ]
    return pl.DataFrame(lines, schema=LEDGER_SCHEMA, orient="row")


def _read(
    source: Source, settings: CurationSettings, pictures: PictureIntake, shards: Shards, workspace: Workspace
) -> dict[str, Any] | None:
    """Read the whole source into shards and its pictures into the image store.

    The image store takes an iterator of pictures; so reading is a generator that hands pictures over as it
    meets them.
    """

    def reading() -> Iterator[dict[str, Any]]:
        for records in _batches(source, settings):
            yield from pictures.load(chain.from_iterable(map(references_of, records)))
            shards.add(
                records, normalised_rows(records, source.name, pictures, settings), pictures.take_paths()
            )
            logger.info("%s: %d records, %d pairs read", source.name, shards.records, shards.pairs)

    rows = reading()
    first = next(rows, None)
    if first is None:
        return None
    return write_images(workspace.images(source.name), chain([first], rows)).pin


def _batches(source: Source, settings: CurationSettings) -> Iterator[list[Record]]:
    records = read_source(source, settings.dialogue_turns)
    return grouped(
        records, (lambda record: max(len(record.pairs), 1), BATCH_PAIRS), (_num_bytes, BATCH_BYTES)
    )


def _num_bytes(record: Record) -> int:
    pictures = sum(len(image) for image, _ in references_of(record) if isinstance(image, bytes))
    return pictures + sum(_num_characters(pair) for pair in record.pairs)


def _num_characters(pair: RawPair) -> int:
    earlier = sum(len(turn.text) for turn in pair.history or ())
    return len(pair.query) + len(pair.target) + earlier + sum(len(side.text) for side in pair.negatives)


def _write_pairs(shards: Shards, duplicates: pl.DataFrame, folder: Path) -> None:
    pairs = shards.kept().join(duplicates.lazy(), on="row", how="anti", maintain_order="left")
    pairs = pairs.select(polars_schema(PAIR).names())
    if not shards.is_sorted:
        pairs = pairs.sort("file", "line", "item")
    pairs.sink_parquet(folder / "pairs.parquet", row_group_size=ROW_GROUP)


def _write_ledger(shards: Shards, duplicates: pl.DataFrame, source: str, folder: Path) -> dict[str, int]:
    """Write the ledger; its pairs by rule."""
    columns = ["row", "sample_id", "source", "file", "line", "item", "rule", "reason", "value"]
    by_rule = shards.rejected().select(columns)
    dropped = shards.kept().select(columns[:6]).join(duplicates.lazy(), on="row").select(columns)
    pairs = rejected_pairs(pl.concat([by_rule, dropped]).collect(engine="streaming"), STAGE)
    unread = shards.unread().with_columns(source=pl.lit(source))
    write_ledger(pl.concat([unread, pairs.lazy()]), folder / "ledger.parquet")
    return count_values(pairs.lazy(), "rule")


def _details(pairs: Path) -> dict[str, Any]:
    scan = pl.scan_parquet(pairs)
    return {"languages": count_values(scan, "language"), "tasks": count_values(scan, "task")}
