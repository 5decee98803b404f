"""Stage `training_set`: the accepted versions of all sources, joined, freed of copies, linked and split.

    training_set/train.arrow       TRAINING, an uncompressed Arrow IPC file to be memory-mapped
    training_set/eval.arrow        the same of the evaluation
    training_set/index.parquet     PLAN_INDEX: row i describes row i of train.arrow
    training_set/images.json       {source: {path, version, uuid}} of the image stores that rows point into
    training_set/ledger.parquet    LEDGER, stage `training_set`
    training_set/stage.json        StageSummary; details: sources, components, counts
    split/assignments.parquet      ASSIGNMENTS over all training sets: the split is sticky

Rows keep the order of the manifest and, within a source, of its files. Assignments are written just before
the training set is swapped in: a run that is killed between the two gives the same result when repeated.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow.compute as pc

from quality.accepted import accepted_folder, pictures_identity
from quality.assignments import (
    content,
    earlier_places,
    links_of_row,
    picture_numbers,
    read_assignments,
    split_id,
    write_assignments,
)
from quality.components import (
    SAME_SCHEMA,
    connect,
    copy_links,
    earlier_links,
    link_keys,
    linking_hashes,
    most_shared,
    name_components,
    near_sides,
)
from quality.copied_links import keys_of_copies
from quality.duplicates import UNBUFFERED
from quality.id_numbers import id_number
from quality.language import EN, OTHER, VI, ZH
from quality.ledger import rejected_pairs, write_ledger
from quality.near_pictures import near_pictures
from quality.overlap import overlap_links
from quality.picture_tasks import keep_pictures_apart
from quality.polars_tables import count_values, damage_named
from quality.predecessors import copies_of_rows, dropped_copies, find_predecessors
from quality.row_duplicates import explain_copies, find_copies
from quality.rules import RULES
from quality.split import check_components, split_rows
from quality.training_tables import write_tables
from vipolyqwen_core.config import CurationSettings, Recipe, to_json
from vipolyqwen_core.contract import Split, Task
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.corpus.tables import StageSummary, read_stage, unchanged_stage
from vipolyqwen_core.portable_paths import spelled
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

STAGE = "training_set"
CODE_VERSION = 12
TASK = pl.Enum(sorted(task.value for task in Task))
LANGUAGE = pl.Enum(sorted((VI, EN, ZH, OTHER)))
CONTENT = (*(split.file for split in Split), "index.parquet")
"""What makes a training set another one, to be trained on anew: its ledger does not. Rows name their pictures
by content, so the number of a version of an image store does not either: curated again after a kill, a store
has another with the same pictures."""
TABLES = (*CONTENT, "ledger.parquet", "images.json")
SHOWN_CHARS = 80


@dataclass(frozen=True)
class AcceptedSource:
    """A source at its accepted version."""

    name: str
    """As in the manifest."""
    folder: Path
    """Holds `pairs.parquet`."""
    version: str
    """Hash of its content."""
    pairs: int
    """Rows of `pairs.parquet`."""
    images: dict[str, Any] | None
    """Of its image store, as `ImageStore.pin`; None: no pictures."""
    off_limits: bool
    """A benchmark, which never trains."""


def accepted_sources(manifest: Manifest, workspace: Workspace) -> list[AcceptedSource]:
    """Each source of the manifest at its accepted version, in order.

    Raises:
        ValueError: names the sources that have no accepted version
    """
    found, missing = [], []
    for source in manifest.sources:
        folder = workspace.validated(source.name)
        version = accepted_folder(folder)
        stage = None if version is None else read_stage(version)
        if version is None or stage is None:
            missing.append(source.name)
            continue
        images = stage.details["images"]
        found.append(
            AcceptedSource(
                source.name, version, stage.data_version, stage.pairs_out, images, source.off_limits
            )
        )
    if missing:
        raise ValueError(
            f"no accepted version of {', '.join(missing)}: each source of the manifest must be curated,"
            " tagged and validated, with all critical expectations met, before a training set can be built"
        )
    return found


@dataclass(frozen=True)
class Decided:
    """Where every row goes, by number."""

    rows: pl.DataFrame
    """`row`, `component` (its number), `source`, `task`, `language`, `split`, `rule`, in order; no split and
    no rule: a copy."""
    names: pl.Series
    """Name of each component, by number."""
    assignments: pl.DataFrame
    """What is to be remembered, of earlier training sets too."""
    counts: dict[str, Any]
    """How many near links there were, and the largest component."""


def build_training_set(manifest: Manifest, recipe: Recipe, workspace: Workspace) -> StageSummary:
    """Join exactly the sources of the manifest, each at its accepted version, and split them for good.

    Raises:
        ValueError: a source has no accepted version, or too many rows are linked to each other
    """
    started = time.monotonic()
    sources = accepted_sources(manifest, workspace)
    folder, persisted = workspace.training_set, workspace.assignments
    versions = [
        (source.name, source.version, pictures_identity(source.images), source.off_limits)
        for source in sources
    ]
    mark = fingerprint(STAGE, CODE_VERSION, versions, to_json(recipe.curation), to_json(recipe.split))
    earlier = unchanged_stage(folder, mark, TABLES)
    if earlier is not None and earlier.details["assignments"] == _digest(persisted):
        logger.info("training set: unchanged, %d pairs", earlier.pairs_out)
        return earlier
    tables = [source.folder / "pairs.parquet" for source in sources]
    with written_aside(folder) as aside, damage_named(tables):
        aside.mkdir(parents=True)
        rows = pl.scan_parquet(tables, row_index_name="row")
        rows = rows.with_columns(pl.col("row").cast(pl.Int64))
        benchmarks = [source.name for source in sources if source.off_limits]
        copies = find_copies(rows, recipe.curation, aside / "bands", last=benchmarks)
        logger.info("training set: %d copies across sources", copies.height)
        decided = _decide(rows, sources, copies, workspace, recipe, aside / "bands")
        stores = [(source.folder, source.images) for source in sources]
        write_tables(stores, decided.rows, decided.names, aside)
        images = {
            source.name: {**source.images, "path": spelled(Path(source.images["path"]), folder)}
            for source in sources
            if source.images is not None
        }
        (aside / "images.json").write_text(json.dumps(images, indent=2), encoding="utf-8")
        rejected = _write_ledger(rows, copies, decided.rows, aside / "ledger.parquet")
        with written_aside(persisted) as table:
            write_assignments(decided.assignments, table, split_id(persisted) or uuid4().hex)
        summary = StageSummary(
            stage=STAGE,
            fingerprint=mark,
            data_version=content_digest([aside / name for name in CONTENT]),
            pairs_in=decided.rows.height,
            pairs_out=decided.rows.drop_nulls("split").height,
            rejected=rejected,
            seconds=time.monotonic() - started,
            details={
                **_details(decided.rows, sources),
                "components": len(decided.names),
                **decided.counts,
                "assignments": _digest(persisted),
            },
        )
        assert summary.pairs_in == summary.pairs_out + sum(rejected.values()), summary
        summary.write(aside)
    logger.info("training set: %d train, %d eval", summary.details["train"], summary.details["eval"])
    return summary


def _digest(path: Path) -> str:
    return content_digest([path]) if path.is_file() else ""


def _decide(
    rows: pl.LazyFrame,
    sources: list[AcceptedSource],
    copies: pl.DataFrame,
    workspace: Workspace,
    recipe: Recipe,
    scratch: Path,
) -> Decided:
    """Link the rows and split them; the workspace remembers the assignments of earlier training sets.

    Raises:
        ValueError: too many rows are linked to each other
    """
    same, counts = _same_keys(rows, sources, recipe.curation, scratch)
    assignments = read_assignments(workspace.assignments)
    facts = _facts(rows, sources, copies, assignments)
    folders = {source.name: source.folder for source in sources}
    dropped = dropped_copies(workspace, folders)
    sides = linking_hashes(rows, recipe.curation.min_linking_chars)
    predecessors = find_predecessors(facts, assignments, dropped, sides)
    earlier = earlier_links(facts, assignments, predecessors)
    copied = keys_of_copies(workspace, folders, facts)
    links = pl.concat([_links(rows, sources, copies, earlier, recipe.curation), copied])
    labels = connect(facts.height, links, same)
    del links, earlier, same
    names = name_components(facts["sample_id"], labels)
    facts = facts.with_columns(component=pl.Series(labels))
    logger.info("training set: %d rows in %d components", facts.height, len(names))
    largest = check_components(
        facts.filter(~pl.col("dropped") & ~pl.col("off_limits")),
        names,
        recipe.split,
        lambda members: _what_links(
            rows, members, predecessors["row"], copied["row"], sources, recipe.curation
        ),
    )
    replaced = copies_of_rows(facts, copies, dropped)
    result = split_rows(facts, names, assignments, predecessors, replaced, recipe.split)
    assert result.rows["row"].equals(facts["row"]), "rows are out of order"
    decided = facts.select(
        "row", "component", "source", "task", "language", *result.rows.select("split", "rule")
    )
    if recipe.split.one_task_per_picture:
        decided = keep_pictures_apart(rows, decided, recipe.split.seed)
    return Decided(decided, names, result.assignments, {**counts, "largest_component": largest})


def _what_links(
    rows: pl.LazyFrame,
    members: pl.Series,
    replacing: pl.Series,
    standing: pl.Series,
    sources: list[AcceptedSource],
    settings: CurationSettings,
) -> str:
    """What most of the rows with these numbers have in common, for a person.

    Args:
        replacing: rows that take after others which are gone, and have the links of these
        standing: rows that stay for copies of other groups or dialogues, once for each of these
    """
    linked = rows.filter(pl.col("row").is_in(members.cast(pl.Int64).implode()))
    most = most_shared(linked, settings.min_linking_chars)
    if most is None:  # texts that are too short, and no group
        return "an earlier training set linked them"
    kind, value, count = most
    further = []
    if earlier := members.is_in(replacing.implode()).sum():
        further.append(f"{earlier} stand in the place of earlier rows that are gone, and have their links")
    if links := standing.is_in(members.implode()).sum():
        further.append(f"{links} groups or dialogues are linked by a copy in them that was dropped")
    others = "; ".join(further)
    if count == 1:
        nothing = "no two of them share a picture, a group_id, a dialogue or a text"
        return f"{nothing}, but {others}" if others else f"{nothing}, they are near copies in a chain"
    common = f"{count} of them share the {kind} {_shown(kind, value, sources)}"
    if count == len(members):
        return common
    chained = "the others are linked to these in chains, by near copies or other things in common"
    return f"{common}, {chained}; {others}" if others else f"{common}, {chained}"


def _shown(kind: str, value: str, sources: list[AcceptedSource]) -> str:
    """A text in quotes and not in full, a picture by the name it has in its source."""
    if kind != "picture":
        return repr(value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "…")
    for source in sources:
        if source.images is not None:
            store = ImageStore(**source.images).table(["image_id", "origin"])
            origins = store.filter(pc.field("image_id") == value)["origin"].to_pylist()
            if origins and origins[0]:
                return f"{origins[0]} of {source.name}"
    return value


def _facts(
    rows: pl.LazyFrame, sources: list[AcceptedSource], copies: pl.DataFrame, assignments: pl.DataFrame
) -> pl.DataFrame:
    """What the split has to know of each row, by number: as `split_rows` takes it, but for the component.

    All rows are in memory at once from here on, so ids are numbers and the other texts are Enums.
    """
    names = pl.Enum(sorted(source.name for source in sources))
    facts = rows.select(
        pl.col("row").cast(pl.UInt32),
        id_number(pl.col("sample_id")),
        content().alias("content"),
        links_of_row().alias("links"),
        pl.col("source").cast(names),
        pl.col("task").cast(TASK),
        pl.col("language").cast(LANGUAGE),
    ).collect(engine="streaming")
    assert facts["sample_id"].null_count() == 0, "ids that are no 32 hex digits"
    assert facts["content"].null_count() == 0, "sides without a hash"
    facts = _with_links_of_equal_rows(facts)
    dropped = np.zeros(facts.height, dtype=bool)
    dropped[copies["row"].to_numpy()] = True
    return facts.with_columns(
        off_limits=pl.col("source").is_in([source.name for source in sources if source.off_limits]),
        dropped=pl.Series(dropped),
        earlier=earlier_places(facts["sample_id"], assignments),
    )


def _with_links_of_equal_rows(facts: pl.DataFrame) -> pl.DataFrame:
    """Equal rows of several sources have one id, by which they are remembered; each may be of a group."""
    ordered = facts["sample_id"].sort()
    several = ordered.filter(ordered == ordered.shift())
    if several.is_empty():
        return facts
    equal = pl.col("sample_id").is_in(several.unique().implode())
    links = facts.filter(equal).select("sample_id", "links").explode("links").drop_nulls("links").unique()
    united = links.group_by("sample_id").agg(united=pl.col("links").sort())
    joined = facts.join(united, on="sample_id", how="left", maintain_order="left")
    return joined.with_columns(links=pl.coalesce("united", "links")).drop("united")


def _same_keys(
    rows: pl.LazyFrame, sources: list[AcceptedSource], settings: CurationSettings, scratch: Path
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Keys that mean the same, `a` and `b`; and how many of texts and of pictures there are."""
    texts = near_sides(
        rows, settings.min_linking_chars, settings.near_duplicate_threshold, settings.seed, scratch
    )
    pictures = _near_picture_keys(sources)
    counts = {"near_text_links": texts.height, "near_picture_links": pictures.height}
    return pl.concat([texts, pictures]), counts


def _links(
    rows: pl.LazyFrame,
    sources: list[AcceptedSource],
    copies: pl.DataFrame,
    earlier: pl.DataFrame,
    settings: CurationSettings,
) -> pl.DataFrame:
    """All that links rows: `row`, `key`."""
    return pl.concat(
        [
            overlap_links(rows, [source.name for source in sources if source.off_limits]),
            link_keys(rows, settings.min_linking_chars).collect(engine="streaming", optimizations=UNBUFFERED),
            earlier,
            copy_links(copies),
        ]
    )


def _near_picture_keys(sources: list[AcceptedSource]) -> pl.DataFrame:
    """Keys of pictures that look the same, within and across sources: `a`, `b`."""
    stores = [ImageStore(**s.images) for s in sources if s.images is not None]
    if not stores:
        return pl.DataFrame(schema=SAME_SCHEMA)
    tables = []
    for number, store in enumerate(stores):
        table = pl.from_arrow(store.table(["image_id", "phash", "width", "height"]))
        assert isinstance(table, pl.DataFrame)
        tables.append(table.with_row_index("place").with_columns(store=pl.lit(number)))
    pictures = (
        pl.concat(tables).unique("image_id", keep="first", maintain_order=True).with_row_index("picture")
    )
    pictures = pictures.with_columns(pl.col("picture").cast(pl.Int64))
    where = pictures.select("store", "place")

    def read(numbers: Sequence[int]) -> list[bytes]:
        wanted = where[numbers].with_row_index("order")
        found: dict[int, bytes] = {}
        for (store,), part in wanted.group_by("store"):
            content = stores[int(str(store))].read(part["place"].to_list())
            found.update(zip(part["order"], content, strict=True))
        return [found[order] for order in range(len(numbers))]

    pairs = near_pictures(pictures.select("picture", "phash", "width", "height"), read)
    keys = pictures.select("picture", key=picture_numbers(pl.col("image_id")))
    return (
        pairs.join(keys.select(a="picture", key_a="key"), on="a")
        .join(keys.select(b="picture", key_b="key"), on="b")
        .select(a="key_a", b="key_b")
    )


def _write_ledger(
    rows: pl.LazyFrame, copies: pl.DataFrame, decisions: pl.DataFrame, path: Path
) -> dict[str, int]:
    """Write the ledger; its pairs by rule."""
    refused = decisions.drop_nulls("rule").select(
        pl.col("row").cast(pl.Int64),
        pl.col("rule").cast(pl.String),
        reason=pl.col("rule").cast(pl.String).replace_strict(RULES, return_dtype=pl.String),
        value=pl.lit(None, dtype=pl.String),
    )
    explained = explain_copies(copies, rows).select("row", "rule", "reason", "value")
    rejected = pl.concat([explained, refused])
    places = rows.select("row", "sample_id", "source", "file", "line", "item")
    lines = rejected_pairs(places.join(rejected.lazy(), on="row").collect(engine="streaming"), STAGE)
    write_ledger(lines, path)
    return count_values(lines.lazy(), "rule")


def _details(decisions: pl.DataFrame, sources: list[AcceptedSource]) -> dict[str, Any]:
    sided = decisions.drop_nulls("split")

    def counts(*columns: str) -> list[dict[str, Any]]:
        found = sided.group_by(*columns).len(name="pairs").cast(dict.fromkeys(columns, pl.String))
        return found.sort(*columns).to_dicts()

    by_source = {
        source.name: {
            "version": source.version,
            "pairs_in": source.pairs,
            **{
                split.value: sided.filter(
                    pl.col("source") == source.name, pl.col("split") == split.value
                ).height
                for split in Split
            },
        }
        for source in sources
    }
    sizes = {split.value: sided.filter(pl.col("split") == split.value).height for split in Split}
    return {**sizes, "sources": by_source, "counts": counts("split", "task", "language")}
