"""The way of one pair through the factory: where it came from, what changed it, where it went.

A pair is named by its id, or by its place; a record that could not be read has nothing but its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from quality.curate import SOURCE_FILE
from quality.ledger import READ_STAGE
from quality.text_changes import changes
from quality.validate import accepted_folder
from vipolyqwen_core.config import from_json
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, list_files, read_source
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

KEPT, REJECTED = "kept", "rejected"
MIN_DIGITS = 6
SHOWN_CHARS = 600
FACTS = (
    "task",
    "language",
    "prefix",
    "score",
    "group_id",
    "positive_key",
    "query_images",
    "target_images",
    "query_tokens",
    "target_tokens",
)
"""Columns that are shown where they are set or change."""


@dataclass(frozen=True)
class Step:
    """What one stage did with the pair."""

    stage: str
    """`source`, `read` (of a record without pairs), `curated`, `tagged`, `validated` or `training_set`."""
    outcome: str
    """`read`, `kept`, `rejected` or `missing`."""
    sentence: str
    """For a person."""
    details: tuple[tuple[str, str], ...] = ()
    """Name and value of what is worth seeing."""

    def __str__(self) -> str:
        lines = [f"{self.stage}: {self.outcome}. {self.sentence}"]
        return "\n".join([*lines, *(f"    {name}: {value}" for name, value in self.details)])


def trace(wanted: str, workspace: Workspace) -> list[Step]:
    """What happened to a pair at each stage, in order; a pair that several sources hold is followed in each.

    Args:
        wanted: 32 hex digits of a sample, or the first ones, 6 at least; or `FILE:LINE`,
            `SOURCE/FILE:LINE` as ledgers name files: each pair of the record there, or why it was not read
    Raises:
        ValueError: no source has such a pair or record
    """
    home = workspace.curated("any").parent
    folders = sorted(path.parent for path in home.glob("*/stage.json"))
    file, colon, line = wanted.strip().rpartition(":")
    if colon and line.isdecimal():
        steps = [step for folder in folders for step in _steps_at(file, int(line), folder, workspace)]
        if not steps:
            raise ValueError(f"no curated source of {workspace.home} has a record in {file}, line {line}")
        return steps
    sample_id = wanted.strip().lower()
    if len(sample_id) < MIN_DIGITS:
        raise ValueError(
            f"sample {sample_id!r}: give at least {MIN_DIGITS} of its 32 hex digits, or FILE:LINE"
        )
    steps = [step for folder in folders for step in _steps(sample_id, folder, workspace)]
    if not steps:
        raise ValueError(f"sample {sample_id!r} is in no curated source of {workspace.home}")
    return steps


def _steps_at(file: str, line: int, curated: Path, workspace: Workspace) -> Iterator[Step]:
    """The steps of what stands at one place of a source: of a record that was rejected, and of each pair."""
    here = pl.col("line") == line, pl.col("file").is_in([file, file.removeprefix(f"{curated.name}/")])
    ledger = pl.scan_parquet(curated / "ledger.parquet").filter(*here).collect(engine="streaming")
    for entry in ledger.filter(pl.col("stage") == READ_STAGE).iter_rows(named=True):
        yield Step("source", "read", f"{curated.name}: {entry['file']}, line {line}.")
        yield _rejection(READ_STAGE, pl.DataFrame([entry]))
    columns = ["sample_id", "file", "item"]
    kept = pl.scan_parquet(curated / "pairs.parquet").filter(*here).select(columns)
    pairs = pl.concat([kept.collect(engine="streaming"), ledger.select(columns).drop_nulls("sample_id")])
    for sample_id, found, item in pairs.sort("item").iter_rows():
        yield from _steps_of(sample_id, curated.name, (found, line, item), workspace)


def _steps(sample_id: str, curated: Path, workspace: Workspace) -> Iterator[Step]:
    """The steps of every copy of the sample in one source."""
    columns = ["sample_id", "file", "line", "item"]
    copies = pl.concat(
        [_find(curated / name, sample_id).select(columns) for name in ("pairs.parquet", "ledger.parquet")]
    )
    for whole, file, line, item in copies.unique(maintain_order=True).iter_rows():
        yield from _steps_of(whole, curated.name, (file, line, item), workspace)


def _steps_of(
    sample_id: str, source: str, place: tuple[str, int, int], workspace: Workspace
) -> Iterator[Step]:
    """The steps of the pair at one place of a source."""
    raw = raw_pair(workspace.curated(source), *place)
    file, line, item = place
    where = f"{file}, line {line}" + (f", pair {item + 1} of its record" if item else "")
    yield Step(
        "source",
        "read" if raw else "missing",
        f"{source}: {where}." + ("" if raw else " The source no longer has it there."),
        _texts(_written(raw) if raw else {}),
    )
    stages = [("curated", workspace.curated(source)), ("tagged", workspace.tagged(source))]
    if (accepted := accepted_folder(workspace.validated(source))) is not None:
        stages.append(("validated", accepted))
    before: dict[str, Any] = {"query": raw.query, "target": raw.target} if raw else {}
    for stage, folder in stages:
        rows = _at(_find(folder / "pairs.parquet", sample_id), place)
        step = _step(stage, rows, _at(_find(folder / "ledger.parquet", sample_id), place), before)
        yield step
        if step.outcome != KEPT:
            return
        before = rows.row(0, named=True)
    yield _last_step(sample_id, source, place, workspace)


def _written(raw: RawPair) -> dict[str, Any]:
    """What the source says of a pair."""
    pictures = [
        image if isinstance(image, str) else f"{len(image)} bytes"
        for image in (*raw.query_images, *raw.target_images)
    ]
    return {"query": raw.query, "target": raw.target, "pictures": ", ".join(pictures) or None}


def _step(stage: str, rows: pl.DataFrame, ledger: pl.DataFrame, before: dict[str, Any]) -> Step:
    if ledger.height:
        return _rejection(stage, ledger)
    if rows.is_empty():
        return Step(stage, "missing", "The stage has not run since the pair arrived.")
    row = rows.row(0, named=True)
    changed = {
        name: changes(before[name], row[name])
        for name in ("query", "target")
        if before.get(name) is not None and before[name] != row[name]
    }
    facts = {
        name: row[name]
        for name in FACTS
        if row.get(name) not in (None, []) and row.get(name) != before.get(name)
    }
    facts |= {f"{name} changed": value for name, value in changed.items()}
    return Step(stage, KEPT, "" if changed else "The texts stay as they are.", _texts(facts))


def _rejection(stage: str, ledger: pl.DataFrame) -> Step:
    entry = ledger.row(0, named=True)
    return Step(
        stage, REJECTED, f"Rule {entry['rule']}: {entry['reason']}", _texts({"value": entry["value"]})
    )


def _last_step(sample_id: str, source: str, place: tuple[str, int, int], workspace: Workspace) -> Step:
    """Where the pair went in the training set."""
    folder, stage = workspace.training_set, "training_set"
    ledger = _find(folder / "ledger.parquet", sample_id).filter(pl.col("source") == source)
    if (ledger := _at(ledger, place)).height:
        return _rejection(stage, ledger)
    for split in Split:
        rows = _find(folder / f"{split.value}.arrow", sample_id)
        rows = rows.filter(pl.col("source") == source) if rows.width else rows
        if rows.height:
            row = rows.row(0, named=True)
            size = sum(
                _scan(folder / f"{other.value}.arrow")
                .filter(pl.col("component") == row["component"])
                .collect()
                .height
                for other in Split
            )
            return Step(
                stage,
                KEPT,
                f"In {split.value}.",
                _texts({"component": f"{row['component']}, {size} pair{'s' if size > 1 else ''}"}),
            )
    return Step(stage, "missing", "No training set was built since the pair was accepted.")


def curated_source(curated: Path) -> Source | None:
    """The source as it was when it was curated; None: it was not."""
    described = curated / SOURCE_FILE
    return from_json(Source, described.read_bytes(), origin=str(described)) if described.is_file() else None


def raw_pair(curated: Path, file: str, line: int, item: int) -> RawPair | None:
    """The pair as the source has it now; None where it is gone."""
    source, summary = curated_source(curated), read_stage(curated)
    if source is None or summary is None:
        return None
    try:
        list_files(source)
    except ValueError:  # the files are gone
        return None
    for record in read_source(source, summary.details["dialogue_turns"], only=file):
        if record.line == line:
            return record.pairs[item] if item < len(record.pairs) else None
    return None


def _scan(path: Path) -> pl.LazyFrame:
    return pl.scan_ipc(path) if path.suffix == ".arrow" else pl.scan_parquet(path)


def _find(path: Path, sample_id: str) -> pl.DataFrame:
    """Rows of a table whose sample id begins so; empty where there is no table."""
    if not path.is_file():
        return pl.DataFrame(schema={"sample_id": pl.String, "source": pl.String, "file": pl.String,
                                    "line": pl.Int64, "item": pl.Int32})  # fmt: skip
    return _scan(path).filter(pl.col("sample_id").str.starts_with(sample_id)).collect(engine="streaming")


def _at(rows: pl.DataFrame, place: tuple[str, int, int]) -> pl.DataFrame:
    file, line, item = place
    return rows.filter(pl.col("file") == file, pl.col("line") == line, pl.col("item") == item)


def _texts(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)[:SHOWN_CHARS]) for name, value in values.items() if value is not None)
