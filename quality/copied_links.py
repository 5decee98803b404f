"""What copies that curation dropped were linked to: the rows that stay are linked to it in their place.

A copy may be of another declared group than the row that stays, or of another dialogue. Without it the other
rows of that group would not be linked to what says the same as one of them.

    curated/<source>/copied_links.parquet    sample_id of the row that stays; source, file, line and group_id
                                             of the copy; a group_id or file and line are null where they
                                             link nothing
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from quality.accepted import stages_of
from quality.assignments import group_number
from quality.components import dialogue, links_alone
from quality.id_numbers import id_number
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.workspace import Workspace

COPIED_LINKS = "copied_links.parquet"
RECORD = ("source", "file", "line")
MOST_COPIES = 10
SCHEMA = pl.Schema(
    {
        "sample_id": pl.String(),
        "source": pl.String(),
        "file": pl.String(),
        "line": pl.Int64(),
        "group_id": pl.String(),
    }
)


def copied_links(rows: pl.LazyFrame, duplicates: pl.DataFrame, settings: CurationSettings) -> pl.DataFrame:
    """Groups and dialogues of dropped copies, each with the `sample_id` that stays.

    A copy counts only where one of its sides links by itself: many groups have the same greeting, and are not
    linked by it where both copies stay, either. A row of which more than MOST_COPIES are of other groups is a
    form that belongs to none; to link them all would be too many linked rows.

    Args:
        rows: `row` and the columns of a pair
        duplicates: `row`, `kept`, `value` (the sample that stays), as `find_duplicates` gives them
    """
    stays = duplicates.lazy().select("row", "kept", stays="value")
    links = pl.any_horizontal(links_alone(settings.min_linking_chars).values())
    copies = rows.join(stays, on="row").filter(links).select("stays", "kept", *RECORD, "group_id")
    kept = rows.select(kept="row", kept_group="group_id").join(stays, on="kept", how="semi")
    of_groups = (
        copies.filter(pl.col("group_id").is_not_null())
        .join(kept, on="kept")
        .filter(pl.col("group_id").ne_missing(pl.col("kept_group")))
        .select("stays", "source", file=None, line=None, group_id="group_id")
    )
    found = [of_groups]
    if settings.dialogue_turns == "each":  # else no two pairs are of one dialogue
        others = rows.join(stays, on="row", how="anti").select(*RECORD).unique()
        of_dialogues = copies.join(others, on=RECORD, how="semi")
        found.append(of_dialogues.select("stays", *RECORD, group_id=None))
    table = pl.concat(found, how="vertical_relaxed").rename({"stays": "sample_id"}).unique().cast(SCHEMA)
    copies_of = pl.len().over("sample_id", pl.col("group_id").is_null())
    return table.collect(engine="streaming").filter(copies_of <= MOST_COPIES).sort(*SCHEMA)


def keys_of_copies(workspace: Workspace, sources: Mapping[str, Path], rows: pl.DataFrame) -> pl.DataFrame:
    """Links of rows to groups and dialogues of copies that curation dropped for them: `row`, `key`.

    Args:
        sources: folder of the accepted version of each
        rows: `row`, `sample_id` (a number), `source`
    """
    tables = [stages_of(place, name, workspace)[0] / COPIED_LINKS for name, place in sources.items()]
    tables = [table for table in tables if table.is_file()]  # versions of earlier code have none
    if not tables:
        return pl.DataFrame(schema={"row": pl.Int64, "key": pl.UInt64})
    of_dialogue = pl.concat_str(dialogue(), separator="\n")
    keys = pl.scan_parquet(tables).select(
        id_number(pl.col("sample_id")),
        "source",
        key=pl.coalesce(group_number(), pl.when(of_dialogue.is_not_null()).then(of_dialogue.hash(seed=0))),
    )
    known = rows.lazy().select(pl.col("row").cast(pl.Int64), "sample_id", pl.col("source").cast(pl.String))
    return known.join(keys, on=("sample_id", "source")).select("row", "key").collect(engine="streaming")
