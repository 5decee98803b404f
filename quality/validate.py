"""Stage `validated`: the last look at a source before it may train.

Row rules reject single pairs. Then Great Expectations judges what is left, as a whole. Where every critical
expectation holds, the pairs become the accepted version of the source; otherwise the last accepted version
stays, and training goes on with that.

    validated/<source>/stage.json       the last judgement, whatever it was
    validated/<source>/candidate/       the same of a version that was not accepted
    validated/<source>/<version>/       pairs.parquet, ledger.parquet, stage.json of an accepted version
    validated/<source>/<version>/curated/, tagged/    ledger.parquet, stage.json of the stages before it, and
                                                      copied_links.parquet of curation
    validated/<source>/accepted.json    {"version": ...}
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from quality.accepted import CANDIDATE, accepted_folder, accepted_stage, judged_folder
from quality.copied_links import COPIED_LINKS
from quality.drift import Profile, profile, unexpected_share
from quality.expectations import (
    CRITICAL,
    Suite,
    balance_of_tasks,
    balance_suite,
    drift_suite,
    facts_suite,
    narrow_pairs,
    pairs_suite,
    pictures_suite,
    placeholders_match,
    task_suite,
)
from quality.judge import PAGE, judge
from quality.language import OTHER
from quality.ledger import (
    missing_pairs,
    missing_records,
    rejected_pairs,
    write_ledger,
)
from quality.polars_tables import count_rows, count_values, damage_named, polars_schema
from quality.row_duplicates import EXACT, NEAR
from quality.rules import RowRule, first_failure
from vipolyqwen_core.config import ObjectiveSettings
from vipolyqwen_core.contract import PAIR, TAGGED, Column, Task
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint
from vipolyqwen_core.corpus.image_store import ImageStore, are_same_pictures, is_stored
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.tables import StageSummary, is_whole, link_or_copy, read_stage, unchanged_stage
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

STAGE = "validated"
CODE_VERSION = 8
TABLES = ("pairs.parquet", "ledger.parquet")
ROW_GROUP = 50_000


def validate(
    source: Source,
    workspace: Workspace,
    own: Sequence[Suite] = (),
    positive_score: float = ObjectiveSettings.positive_score,
) -> StageSummary:
    """Judge the tagged pairs of a source; `details["accepted"]` says whether they may train.

    Args:
        own: suites of the user's, beside the built-in ones
        positive_score: of the recipe: a scored pair below it is no positive
    Raises:
        ValueError: the source was not tagged yet
    """
    started = time.monotonic()
    curated, tagged = read_stage(workspace.curated(source.name)), read_stage(workspace.tagged(source.name))
    if curated is None or tagged is None:
        raise ValueError(
            f"source {source.name!r} has not been curated and tagged yet: run these stages first"
        )
    folder = workspace.validated(source.name)
    own = [suite for suite in own if not suite.sources or source.name in suite.sources]
    digests = [suite.digest() for suite in own]
    mark = fingerprint(
        STAGE,
        CODE_VERSION,
        tagged.data_version,
        curated.data_version,
        source.languages,
        digests,
        positive_score,
    )
    images = curated.details.get("images")
    docs = workspace.data_docs / source.name / STAGE
    summary = unchanged_stage(folder, mark)
    if summary is not None and (docs / PAGE).is_file() and _stands(summary, folder, images):
        logger.info("%s: unchanged, %s", source.name, _verdict(summary))
        return summary
    # no pair tells of copies that were dropped, and the split has to remember them
    dropped = _of_copies(workspace.curated(source.name))
    pairs = workspace.tagged(source.name) / "pairs.parquet"
    with written_aside(folder / CANDIDATE) as aside, damage_named([pairs]):
        aside.mkdir(parents=True)
        kept, rejected = _apply_rules(pairs, aside)
        summary = StageSummary(
            stage=STAGE,
            fingerprint=mark,
            data_version=content_digest([*(aside / name for name in TABLES), *dropped]),
            pairs_in=tagged.pairs_out,
            pairs_out=kept,
            rejected=rejected,
        )
        earlier = accepted_stage(folder)
        before = Profile(**earlier.details["profile"]) if earlier is not None else None
        stages = curated, tagged, summary
        tables, now = _tables(source, aside, workspace, stages, before, own, positive_score)
        lines = judge([*built_in_suites(source, tables, before), *own], tables, docs)
        failed = [line for line in lines if not line["success"]]
        summary = replace(
            summary,
            seconds=time.monotonic() - started,
            details={
                "accepted": all(line["severity"] != CRITICAL.value for line in failed),
                "expectations": lines,
                "profile": asdict(now),
                "images": images,
                "data_docs": str(docs / PAGE),
            },
        )
        summary.write(aside)
        _keep(curated, dropped, aside)
        _keep(tagged, [workspace.tagged(source.name) / "ledger.parquet"], aside)
    if summary.details["accepted"]:
        _accept(folder, summary.data_version)
    summary.write(folder)
    for line in failed:
        what = f"{line['suite']}: {line['expectation']} {line['column'] or ''}"
        logger.warning("%s: %s failed (%s): %s", source.name, what, line["severity"], line["observed"])
    logger.info("%s: %d pairs validated, %s", source.name, kept, _verdict(summary))
    return summary


def _stands(summary: StageSummary, folder: Path, images: dict[str, Any] | None) -> bool:
    """Whether the version that a judgement speaks of is there; if accepted, also named, with its pictures.

    Pairs name pictures by content: that these lie elsewhere now, the store alone tells.

    Args:
        images: the pictures of the last curation
    """
    version = judged_folder(folder, summary)
    if not all(is_whole(version / name) for name in (*TABLES, "stage.json")):
        return False
    if not are_same_pictures(summary.details["images"], images):
        return False
    return not summary.details["accepted"] or (
        accepted_folder(folder) == version and is_stored(summary.details["images"])
    )


def tagged_rules() -> list[RowRule]:
    """Rules for tagged pairs."""
    return [
        RowRule(
            "placeholder_mismatch",
            ~placeholders_match(),
            pl.format("{} pictures in the query: {}", pl.col("query_images").list.len(), pl.col("query")),
        ),
        RowRule(
            "nothing_to_encode",
            (pl.col("query_tokens") <= 0) | (pl.col("target_tokens") <= 0),
            pl.format("{} and {} tokens", "query_tokens", "target_tokens"),
        ),
    ]


def _verdict(summary: StageSummary) -> str:
    return "accepted" if summary.details["accepted"] else "NOT accepted: the last accepted version stays"


def _apply_rules(tagged: Path, aside: Path) -> tuple[int, dict[str, int]]:
    """Write the pairs that pass and the ledger of the others; how many passed, and the others by rule.

    Where all pass, the file of the stage before is linked, not copied: no file ever changes once written.
    """
    rules = tagged_rules()
    rows = pl.scan_parquet(tagged)
    fails = pl.any_horizontal(rule.fails.fill_null(False) for rule in rules)
    rejected = first_failure(rows.filter(fails).collect(engine="streaming"), rules)
    ledger = rejected_pairs(rejected, STAGE)
    write_ledger(ledger, aside / "ledger.parquet")
    if ledger.is_empty():
        link_or_copy(tagged, aside / "pairs.parquet")
    else:
        rows.filter(~fails).sink_parquet(aside / "pairs.parquet", row_group_size=ROW_GROUP)
    return count_rows(pl.scan_parquet(aside / "pairs.parquet")), count_values(ledger.lazy(), "rule")


def _of_copies(curated: Path) -> list[Path]:
    """Tables of curation that tell of the copies it dropped; earlier code wrote the ledger alone."""
    return [path for name in ("ledger.parquet", COPIED_LINKS) if (path := curated / name).is_file()]


def _keep(stage: StageSummary, tables: Sequence[Path], aside: Path) -> None:
    """Keep what an earlier stage said of the version: its own folder is written anew for the next one."""
    stage.write(aside / stage.stage)
    for table in tables:
        link_or_copy(table, aside / stage.stage / table.name)


def _tables(
    source: Source,
    folder: Path,
    workspace: Workspace,
    stages: tuple[StageSummary, ...],
    before: Profile | None,
    own: Sequence[Suite],
    positive_score: float,
) -> tuple[dict[str, pl.DataFrame], Profile]:
    """What the suites judge, and the profile of the pairs."""
    curated, tagged, validated = stages
    rows = pl.scan_parquet(folder / "pairs.parquet")
    further = {name: value for suite in own for name, value in suite.columns.items()}
    narrow = narrow_pairs(rows, further).collect(engine="streaming")
    now = profile(narrow)
    read = curated.pairs_in + sum(curated.records_rejected.values())
    duplicates = sum(curated.rejected.get(rule, 0) for rule in (EXACT, NEAR))
    facts: dict[str, Any] = {
        "curated_schema_is_right": _has_schema(workspace.curated(source.name), PAIR),
        "tagged_schema_is_right": _has_schema(workspace.tagged(source.name), TAGGED),
        "validated_schema_is_right": _has_schema(folder, TAGGED),
        "is_sorted": _is_sorted(rows),
        "pairs": validated.pairs_out,
        "missing_records": missing_records(curated),
        "missing_curated": missing_pairs(curated),
        "missing_tagged": missing_pairs(tagged) + abs(curated.pairs_out - tagged.pairs_in),
        "missing_validated": missing_pairs(validated),
        "rejected_share": (read - validated.pairs_out) / read if read else 0.0,
        "duplicate_share": duplicates / curated.pairs_in if curated.pairs_in else 0.0,
        "other_share": now.languages.get(OTHER, 0.0),
        "unexpected_language_share": unexpected_share(now.languages, source.languages),
        **(now.drift(before) if before is not None else {}),
    }
    tables = {"pairs": narrow}
    balance = balance_of_tasks(rows, positive_score).collect(engine="streaming")
    if balance.height:
        tables["balance"] = balance
    images = curated.details.get("images")
    named = pictures_of(rows).collect(engine="streaming")
    missing = named
    if images is not None:
        store = ImageStore(**images)
        columns = ["image_id", "width", "height", "phash", "reencoded"]
        stored = pl.from_arrow(store.table(columns))
        assert isinstance(stored, pl.DataFrame)
        missing = named.join(stored, on="image_id", how="anti")
        tables["pictures"] = stored.with_columns(
            aspect=pl.col("width") / pl.col("height"), reencoded=pl.col("reencoded").cast(pl.Int8)
        )
    facts["missing_pictures"] = missing.height
    return {**tables, "facts": pl.DataFrame([facts])}, now


def _has_schema(folder: Path, columns: Sequence[Column]) -> bool:
    return pl.scan_parquet(folder / "pairs.parquet").collect_schema() == polars_schema(columns)


def pictures_of(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Ids of all pictures that pairs name, hard negatives included: `image_id`, each once."""
    negatives = rows.select("negatives").explode("negatives").drop_nulls()
    named = [
        rows.select(image_id=pl.col("query_images")),
        rows.select(image_id=pl.col("target_images")),
        negatives.select(image_id=pl.col("negatives").struct.field("images")),
    ]
    return pl.concat(named).explode("image_id").drop_nulls().unique()


def _is_sorted(rows: pl.LazyFrame) -> bool:
    places = rows.select("file", "line", "item").collect(engine="streaming")
    return places.equals(places.sort("file", "line", "item", maintain_order=True))


def built_in_suites(
    source: Source, tables: Mapping[str, pl.DataFrame], before: Profile | None
) -> list[Suite]:
    """The suites of BUILT_IN. Without an earlier version there is nothing to have drifted from."""
    scored = tables["pairs"]["score"].count() > 0
    suites = [pairs_suite(), *(task_suite(task, scored) for task in Task)]
    suites += [balance_suite(), facts_suite(bool(source.languages)), pictures_suite()]
    return suites if before is None else [*suites, drift_suite()]


def _accept(folder: Path, version: str) -> None:
    """Make the candidate the accepted version, and remove all others but the one before."""
    earlier = accepted_folder(folder)
    with written_aside(folder / version) as aside:
        (folder / CANDIDATE).rename(aside)
    with written_aside(folder / "accepted.json") as named:
        named.write_text(json.dumps({"version": version}), encoding="utf-8")
    if earlier == folder / version:  # judged once more: what stood before it may still be trained on
        return
    for other in folder.iterdir():
        if other.is_dir() and other not in (folder / version, earlier):
            shutil.rmtree(other)
