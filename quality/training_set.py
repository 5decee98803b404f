"""Stage `training_set`: the accepted versions of all sources, joined, freed of copies, linked and split.

    training_set/train.arrow       TRAINING, an uncompressed Arrow IPC file to be memory-mapped
    training_set/eval.arrow        the same of the evaluation
    training_set/index.parquet     PLAN_INDEX: row i describes row i of train.arrow
    training_set/images.json       {source: {path, version}} of the image stores that rows point into
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

import polars as pl

from quality.components import (
    SAME_SCHEMA,
    connect,
    copy_links,
    earlier_links,
    link_keys,
    name_components,
    near_sides,
    picture_key,
)
from quality.ledger import count_rules, polars_schema, rejected_pairs, write_ledger
from quality.near_pictures import near_pictures
from quality.overlap import overlap_links
from quality.replaced_copies import hand_on, replaced_copies
from quality.row_duplicates import find_duplicates
from quality.rules import RULES
from quality.split import SplitResult, check_components, split_rows
from quality.training_tables import write_tables
from quality.validate import accepted_folder, accepted_stage
from vipolyqwen_core.config import CurationSettings, Recipe, to_json
from vipolyqwen_core.contract import ASSIGNMENTS, Split
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.corpus.tables import StageSummary, unchanged_stage, written_aside
from vipolyqwen_core.workspace import Workspace

logger = logging.getLogger(__name__)

STAGE = "training_set"
CODE_VERSION = 4
TABLES = ("train.arrow", "eval.arrow", "index.parquet", "ledger.parquet", "images.json")


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
    """`path` and `version` of its image store; None: no pictures."""
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
        version, stage = accepted_folder(folder), accepted_stage(folder)
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


def build_training_set(manifest: Manifest, recipe: Recipe, workspace: Workspace) -> StageSummary:
    """Join exactly the sources of the manifest, each at its accepted version, and split them for good.

    Raises:
        ValueError: a source has no accepted version, or too many rows are linked to each other
    """
    started = time.monotonic()
    sources = accepted_sources(manifest, workspace)
    folder, persisted = workspace.training_set, workspace.assignments
    versions = [(source.name, source.version, source.images, source.off_limits) for source in sources]
    mark = fingerprint(STAGE, CODE_VERSION, versions, to_json(recipe.curation), to_json(recipe.split))
    earlier = unchanged_stage(folder, mark)
    if earlier is not None and earlier.details["assignments"] == _digest(persisted):
        logger.info("training set: unchanged, %d pairs", earlier.pairs_out)
        return earlier
    names = [source.name for source in sources]
    assignments = hand_on(read_assignments(persisted), replaced_copies(workspace, names))
    with written_aside(folder) as aside:
        aside.mkdir(parents=True)
        rows = pl.scan_parquet([source.folder / "pairs.parquet" for source in sources], row_index_name="row")
        rows = rows.with_columns(pl.col("row").cast(pl.Int64))
        duplicates = find_duplicates(rows, recipe.curation, aside / "bands")
        logger.info("training set: %d copies across sources", duplicates.height)
        facts, linked = _components(rows, sources, duplicates, assignments, recipe.curation, aside / "bands")
        largest = check_components(facts.filter(~pl.col("dropped")), recipe.split)
        result = split_rows(facts, assignments, recipe.split)
        decisions = _decisions(facts, result)
        write_tables([(source.folder, source.images) for source in sources], decisions, aside)
        images = {source.name: source.images for source in sources if source.images is not None}
        (aside / "images.json").write_text(json.dumps(images, indent=2), encoding="utf-8")
        rejected = _write_ledger(rows, duplicates, result, aside / "ledger.parquet")
        with written_aside(persisted) as table:
            result.assignments.cast(polars_schema(ASSIGNMENTS)).write_parquet(table)
        summary = StageSummary(
            stage=STAGE,
            fingerprint=mark,
            data_version=content_digest([aside / name for name in TABLES]),
            pairs_in=facts.height,
            pairs_out=decisions.drop_nulls("split").height,
            rejected=rejected,
            seconds=time.monotonic() - started,
            details={
                **_details(facts, decisions, sources),
                **linked,
                "largest_component": largest,
                "assignments": _digest(persisted),
            },
        )
        assert summary.pairs_in == summary.pairs_out + sum(rejected.values()), summary
        summary.write(aside)
    logger.info("training set: %d train, %d eval", summary.details["train"], summary.details["eval"])
    return summary


def read_assignments(path: Path) -> pl.DataFrame:
    """The persisted split; empty where no training set was built yet."""
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame(schema=polars_schema(ASSIGNMENTS))


def _digest(path: Path) -> str:
    return content_digest([path]) if path.is_file() else ""


def _components(
    rows: pl.LazyFrame,
    sources: list[AcceptedSource],
    duplicates: pl.DataFrame,
    assignments: pl.DataFrame,
    settings: CurationSettings,
    scratch: Path,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Facts of each row for the split, with its component; and how many links there were."""
    facts = rows.select("row", "sample_id", "source", "task", "language").collect(engine="streaming")
    banned = [source.name for source in sources if source.off_limits]
    facts = facts.with_columns(
        off_limits=pl.col("source").is_in(banned),
        dropped=pl.col("row").is_in(duplicates["row"].implode()),
    )
    links = pl.concat(
        [
            link_keys(rows, settings.min_linking_chars).collect(engine="streaming"),
            earlier_links(facts, assignments),
            copy_links(duplicates),
            overlap_links(rows, banned),
        ]
    )
    texts = near_sides(
        rows, settings.min_linking_chars, settings.near_duplicate_threshold, settings.seed, scratch
    )
    pictures = _near_picture_keys(sources)
    labels = connect(facts.height, links, pl.concat([texts, pictures]))
    facts = name_components(facts, labels)
    counts = {
        "components": facts["component"].n_unique(),
        "near_text_links": texts.height,
        "near_picture_links": pictures.height,
    }
    logger.info("training set: %d rows in %d components", facts.height, counts["components"])
    return facts, counts


def _near_picture_keys(sources: list[AcceptedSource]) -> pl.DataFrame:
    """Keys of pictures that look the same, within and across sources: `a`, `b`."""
    stores = [ImageStore(s.images["path"], s.images["version"]) for s in sources if s.images is not None]
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
    keys = pictures.select("picture", key=picture_key(pl.col("image_id")))
    return (
        pairs.join(keys.select(a="picture", key_a="key"), on="a")
        .join(keys.select(b="picture", key_b="key"), on="b")
        .select(a="key_a", b="key_b")
    )


def _decisions(facts: pl.DataFrame, result: SplitResult) -> pl.DataFrame:
    """`row`, `split` (null: in the ledger) and `component` of every row, in order."""
    sided = result.rows.select("row", "split")
    return facts.select("row", "component", "source", "task", "language").join(
        sided, on="row", how="left", maintain_order="left"
    )


def _write_ledger(
    rows: pl.LazyFrame, duplicates: pl.DataFrame, result: SplitResult, path: Path
) -> dict[str, int]:
    """Write the ledger; its pairs by rule."""
    refused = result.rows.drop_nulls("rule").select(
        "row",
        "rule",
        reason=pl.col("rule").replace_strict(RULES, return_dtype=pl.String),
        value=pl.lit(None, dtype=pl.String),
    )
    rejected = pl.concat([duplicates.select("row", "rule", "reason", "value"), refused])
    places = rows.select("row", "sample_id", "source", "file", "line", "item")
    lines = rejected_pairs(places.join(rejected.lazy(), on="row").collect(engine="streaming"), STAGE)
    write_ledger(lines, path)
    return count_rules(lines.lazy())


def _details(facts: pl.DataFrame, decisions: pl.DataFrame, sources: list[AcceptedSource]) -> dict[str, Any]:
    sided = decisions.drop_nulls("split")

    def counts(*columns: str) -> list[dict[str, Any]]:
        return sided.group_by(*columns).len(name="pairs").sort(*columns).to_dicts()

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
