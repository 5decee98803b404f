"""The way of one pair through the factory: where it came from, what changed it, where it went.

Sources change, and stages run one by one: what the tables hold of an earlier version is told as such.
A pair is named by its id, or by its place; a record that could not be read has nothing but its place.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from quality.accepted import CANDIDATE, accepted_folder
from quality.curate import SOURCE_FILE
from quality.ledger import READ_STAGE
from quality.polars_tables import scan_table, scan_training_set
from quality.text_changes import changes
from vipolyqwen_core.config import from_json
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.manifest import Source, load_manifest
from vipolyqwen_core.corpus.normalised_pair import normalise_pair
from vipolyqwen_core.corpus.readers import RawPair, list_files, read_source
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.corpus.text import compose
from vipolyqwen_core.corpus.without_secrets import without_secrets
from vipolyqwen_core.workspace import Workspace, manifest_setting

KEPT, REJECTED = "kept", "rejected"
NO_LOGIN = "Or it lies behind a login or token, which the manifest alone has: name that by --sources."
EARLIER = "What follows is of an earlier version of the source."
MIN_DIGITS = 6
MAX_HINTS = 5
"""Files that are named where none of that path is known."""
TABLES = ("pairs.parquet", "ledger.parquet")
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
            `SOURCE/FILE:LINE` as ledgers name files, or `PATH:LINE` of a local one: each pair of the record
            there, or why it was not read
    Raises:
        ValueError: no source has such a pair or record, or a table is damaged
    """
    try:
        return _trace(wanted, workspace)
    except pl.exceptions.ComputeError as error:
        raise ValueError(
            f"a table of {workspace.home} is damaged ({str(error).splitlines()[0]}): "
            "the next run of the factory makes one anew that was cut; if it does not, delete the folder "
            "of the source in curated, then in tagged, in validated last"
        ) from error


def _trace(wanted: str, workspace: Workspace) -> list[Step]:
    home = workspace.curated("any").parent
    folders = sorted(path.parent for path in home.glob("[!.]*/stage.json"))  # others are still being written
    file, colon, line = wanted.strip().rpartition(":")
    if colon and line.isdecimal():
        steps = [step for folder in folders for step in _steps_at(file, int(line), folder, workspace)]
        if not steps:
            known = [name for folder in folders for name in _files_called(file, folder)]
            hint = f"; there are records of {', '.join(known[:MAX_HINTS])}" if known else ""
            raise ValueError(
                f"no curated source of {workspace.home} has a record in {file}, line {line}{hint}"
            )
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
    names = [file, file.removeprefix(f"{curated.name}/"), *_names_of(file, curated)]
    names = [compose(name) for name in names]  # a Mac spells them otherwise
    here = pl.col("line") == line, pl.col("file").str.normalize("NFC").is_in(names)
    ledger = pl.scan_parquet(curated / "ledger.parquet").filter(*here).collect(engine="streaming")
    for entry in ledger.filter(pl.col("stage") == READ_STAGE).iter_rows(named=True):
        yield Step("source", "read", f"{curated.name}: {entry['file']}, line {line}.")
        yield _rejection(READ_STAGE, pl.DataFrame([entry]))
    columns = ["sample_id", "file", "item"]
    kept = pl.scan_parquet(curated / "pairs.parquet").filter(*here).select(columns)
    pairs = pl.concat([kept.collect(engine="streaming"), ledger.select(columns).drop_nulls("sample_id")])
    for sample_id, found, item in pairs.sort("item").iter_rows():
        yield from _steps_of(sample_id, curated.name, (found, line, item), workspace)


def _names_of(path: str, curated: Path) -> list[str]:
    """What a source calls a file of its own that somebody names by its path."""
    if not os.path.isfile(path) or not _files_called(path, curated):
        return []
    source, place = curated_source(curated), os.path.realpath(path)
    try:
        files = [] if source is None else list_files(source, read_unversioned=False)
    except ValueError:  # its other files are gone
        return []
    return [file.name for file in files if os.path.realpath(file.location) == place]


def _files_called(file: str, curated: Path) -> list[str]:
    """`SOURCE/FILE` of each file of a source that has the name of this one, wherever that lies."""
    name, column = compose(file.rpartition("/")[2]), pl.col("file").str.normalize("NFC")
    same = column.str.split("/").list.last() == name
    tables = [pl.scan_parquet(curated / table).filter(same).select("file") for table in TABLES]
    found = pl.concat(tables).unique().sort("file").collect(engine="streaming")
    return [f"{curated.name}/{file}" for file in found["file"]]


def _steps(sample_id: str, curated: Path, workspace: Workspace) -> Iterator[Step]:
    """The steps of every copy of the sample in one source, as it is now, or else as it was when accepted."""
    tables = [curated / "pairs.parquet", curated / "ledger.parquet"]
    tables += [folder / "pairs.parquet" for _, folder in _later_stages(curated.name, workspace)]
    tables += [workspace.training_set / split.file for split in Split]
    columns = ["sample_id", "source", "file", "line", "item"]
    now, rejected, *before = (_find(table, sample_id).select(columns) for table in tables)
    earlier = pl.concat(before).filter(pl.col("source") == curated.name)
    earlier = earlier.join(now, on="sample_id", how="anti").unique("sample_id", keep="last")
    copies = pl.concat([now, rejected, earlier]).unique(maintain_order=True)
    for whole, _, file, line, item in copies.iter_rows():
        yield from _steps_of(whole, curated.name, (file, line, item), workspace)


def _later_stages(source: str, workspace: Workspace) -> list[tuple[str, Path]]:
    """The stages after curation with the folders of their tables; of validation, the accepted version's."""
    validated = workspace.validated(source)
    return [
        ("tagged", workspace.tagged(source)),
        ("validated", accepted_folder(validated) or validated / "accepted"),
    ]


def _steps_of(
    sample_id: str, source: str, place: tuple[str, int, int], workspace: Workspace
) -> Iterator[Step]:
    """The steps of the pair at one place of a source.

    Stages run one by one: a later one may still hold what the source had there before.
    """
    tables = [("curated", workspace.curated(source)), *_later_stages(source, workspace)]
    found = [
        (stage, _find(folder / "pairs.parquet", sample_id), _find(folder / "ledger.parquet", sample_id))
        for stage, folder in tables
    ]
    found.append(("training_set", *_in_training_set(sample_id, source, workspace)))
    curated = _at(found[0][1], place)
    if curated.is_empty():  # the pair of another place, where this one is a copy of it, has its own steps
        found = [(stage, _at(rows, place), ledger) for stage, rows, ledger in found]
    found = [(stage, rows, _at(ledger, place)) for stage, rows, ledger in found]
    known = next((rows.row(0, named=True) for _, rows, _ in found if rows.height), None)
    step, before = _source_step(sample_id, source, place, known, workspace)
    yield step
    for number, (stage, rows, ledger) in enumerate(found):
        goes_on = any(rows.height or ledger.height for _, rows, ledger in found[number + 1 :])
        if ledger.height:
            yield _rejection(stage, ledger, EARLIER if goes_on else "")
        elif rows.is_empty():
            yield _missing(stage, source, sample_id, goes_on, workspace)
        elif stage == "training_set":
            yield _last_step(rows, place, workspace)
        else:
            yield _step(stage, rows, place, before)
            before = rows.row(0, named=True)
            continue
        if not goes_on:
            return


def _in_training_set(sample_id: str, source: str, workspace: Workspace) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of the pair on both sides of the split, and in the ledger."""
    files = [*(split.file for split in Split), "ledger.parquet"]
    tables = [_find(workspace.training_set / file, sample_id) for file in files]
    *sides, ledger = (table.filter(pl.col("source") == source) for table in tables)
    return pl.concat(sides), ledger


def _source_step(
    sample_id: str,
    source: str,
    place: tuple[str, int, int],
    known: dict[str, Any] | None,
    workspace: Workspace,
) -> tuple[Step, dict[str, Any]]:
    """What the source has at the place; and the texts that the first stage is compared with."""
    raw = raw_pair(workspace.curated(source), *place)
    file, line, item = place
    where = f"{source}: {file}, line {line}" + (f", pair {item + 1} of its record" if item else "") + "."
    if raw is None:
        described = curated_source(workspace.curated(source))
        needs_login = described is not None and _is_elsewhere(described) and manifest_setting() is None
        hint = f" {NO_LOGIN}" if needs_login else ""
        return Step("source", "missing", f"{where} The source no longer has it there.{hint}"), {}
    if not may_be(raw, sample_id, known):
        sentence = f"{where} The source has changed: it has another pair there now."
        return Step("source", "missing", sentence), {}
    return Step("source", "read", where, _texts(_written(raw))), {"query": raw.query, "target": raw.target}


def may_be(raw: RawPair, sample_id: str, known: dict[str, Any] | None = None) -> bool:
    """Whether a pair of the source is the sample; where only its pictures could tell, it may be.

    Args:
        known: a row of the sample, where there is one
    """
    pictures = [[] if known is None else known[f"{side}_images"] for side in ("query", "target")]
    if [len(raw.query_images), len(raw.target_images)] != [len(ids) for ids in pictures]:
        return known is None
    return sample_id == normalise_pair(raw).hashes(pictures)[0]


def _missing(stage: str, source: str, sample_id: str, goes_on: bool, workspace: Workspace) -> Step:
    """Why a stage has neither kept nor rejected a pair."""
    if goes_on:
        sentence = f"The source no longer has the pair. {EARLIER}"
    elif stage == "training_set":
        built = read_stage(workspace.training_set)
        if built is not None and source not in built.details["sources"]:
            sentence = f"The training set was built without source {source}, as the manifest was then."
        else:
            sentence = "No training set was built since the pair was accepted."
    else:
        sentence = "The stage has not run since the pair arrived."
    if stage == "validated":
        refused = workspace.validated(source) / CANDIDATE
        if any(_find(refused / f"{name}.parquet", sample_id).height for name in ("pairs", "ledger")):
            sentence = "The version of the source that has the pair was not accepted."
    return Step(stage, "missing", sentence)


def _written(raw: RawPair) -> dict[str, Any]:
    """What the source says of a pair."""
    pictures = [
        image if isinstance(image, str) else f"{len(image)} bytes"
        for image in (*raw.query_images, *raw.target_images)
    ]
    return {"query": raw.query, "target": raw.target, "pictures": ", ".join(pictures) or None}


def _step(stage: str, rows: pl.DataFrame, place: tuple[str, int, int], before: dict[str, Any]) -> Step:
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
    same = "The texts stay as they are." if before and not changed else ""
    return Step(stage, KEPT, f"{same} {_earlier_place(row, place)}".strip(), _texts(facts))


def _earlier_place(row: dict[str, Any], place: tuple[str, int, int]) -> str:
    if (row["file"], row["line"], row["item"]) == place:
        return ""
    return f"Of an earlier version of the source, where it was {row['file']}, line {row['line']}."


def _rejection(stage: str, ledger: pl.DataFrame, note: str = "") -> Step:
    entry = ledger.row(0, named=True)
    sentence = f"Rule {entry['rule']}: {entry['reason']} {note}".strip()
    return Step(stage, REJECTED, sentence, _texts({"value": entry["value"]}))


def _last_step(rows: pl.DataFrame, place: tuple[str, int, int], workspace: Workspace) -> Step:
    """Where the pair went in the training set."""
    row = rows.row(0, named=True)
    members = scan_training_set(workspace.training_set).filter(component=row["component"]).select(pl.len())
    size = members.collect(engine="streaming").item()
    return Step(
        "training_set",
        KEPT,
        f"In {row['split']}. {_earlier_place(row, place)}".strip(),
        _texts({"component": f"{row['component']}, {size} pair{'s' if size > 1 else ''}"}),
    )


def curated_source(curated: Path) -> Source | None:
    """The source as it was when it was curated, with the logins of the manifest at hand; None: it was not."""
    described = curated / SOURCE_FILE
    if not described.is_file():
        return None
    source = from_json(Source, described.read_bytes(), origin=str(described))
    manifest = manifest_setting()
    if manifest is None or not _is_elsewhere(source):
        return source
    try:
        own = load_manifest(manifest).source(source.name)
    except ValueError:
        return source
    told = own.placed(without_secrets)
    if (told.paths, told.image_root) != (source.paths, source.image_root):
        return source
    return replace(source, paths=own.paths, image_root=own.image_root)


def _is_elsewhere(source: Source) -> bool:
    """Whether a source has a URL: what opens it, a login or a token, is not kept with what was curated."""
    return any("://" in place for place in (*source.paths, source.image_root or ""))


def raw_pair(curated: Path, file: str, line: int, item: int) -> RawPair | None:
    """The pair as the source has it now; None where it is gone."""
    source, summary = curated_source(curated), read_stage(curated)
    if source is None or summary is None:
        return None
    try:
        list_files(source, read_unversioned=False)
    except ValueError:  # the files are gone
        return None
    for record in read_source(source, summary.details["dialogue_turns"], only=file):
        if record.line == line:
            return record.pairs[item] if item < len(record.pairs) else None
    return None


def _find(path: Path, sample_id: str) -> pl.DataFrame:
    """Rows of a table whose sample id begins so; empty where there is no table."""
    if not path.is_file():
        return pl.DataFrame(schema={"sample_id": pl.String, "source": pl.String, "file": pl.String,
                                    "line": pl.Int64, "item": pl.Int32})  # fmt: skip
    return scan_table(path).filter(pl.col("sample_id").str.starts_with(sample_id)).collect(engine="streaming")


def _at(rows: pl.DataFrame, place: tuple[str, int, int]) -> pl.DataFrame:
    file, line, item = place
    return rows.filter(pl.col("file") == file, pl.col("line") == line, pl.col("item") == item)


def _texts(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(value)[:SHOWN_CHARS]) for name, value in values.items() if value is not None)


def _text(value: Any) -> str:
    """A value for a person: a score of 32 bits is 0.23, not 0.23000000417232513."""
    return f"{value:g}" if isinstance(value, float) else str(value)
