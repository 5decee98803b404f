"""Rows that the data report shows: kept ones, rejected ones, and near copies beside what they copy.

The same rows at each run. Rejected rows are read again from their source, where they still stand there; those
at the beginning of a file are chosen, so that this costs little however large the source is.
"""

import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from quality.picture_pool import CRASHED
from quality.row_duplicates import EXACT, NEAR
from quality.text_changes import marked
from quality.trace import curated_source, may_be, raw_pair
from vipolyqwen_core.config import MAX_IMAGE_PIXELS
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.image_store import ImageStore, read_pins
from vipolyqwen_core.corpus.pictures import TOO_MANY_PIXELS, PictureError, decode_picture
from vipolyqwen_core.corpus.readers import RawImage, RawPair
from vipolyqwen_core.evaluation import html_page
from vipolyqwen_core.evaluation.html_page import thumbnail_url
from vipolyqwen_core.workspace import Workspace

KEPT_SAMPLES = 4
"""Rows of each task, from as many sources as it has."""
REJECTED_SAMPLES = 3
"""Rows of each rule, from as many sources as it has."""
COPY_SAMPLES = 8
MAX_PICTURES = 4
MAX_CHARS = 600
MAX_LINES = 12
THUMBNAIL_PIXELS = 240
CHARS_BEFORE = 100
LINES_BEFORE = 3
"""Shown before the first place where two long texts differ."""


def kept_samples(rows: pl.LazyFrame, training_set: Path) -> list[dict[str, Any]]:
    """Some rows of each task, with their pictures.

    Args:
        rows: of both sides of the split
    """
    pins = read_pins(training_set)
    smallest = rows.group_by("task", "source").agg(pl.col("sample_id").bottom_k(KEPT_SAMPLES).sort())
    chosen = _spread(smallest.collect(engine="streaming"), "task", "sample_id", KEPT_SAMPLES)
    columns = ["sample_id", "source", "task", "language", "split", "query", "history", "target", "score"]
    some = rows.select(*columns, "query_image_rows", "target_image_rows").filter(
        pl.col("sample_id").is_in(chosen)
    )
    shown = []
    for row in some.sort("task", "source", "sample_id").collect(engine="streaming").to_dicts():
        places = (row.pop("query_image_rows") + row.pop("target_image_rows"))[:MAX_PICTURES]
        pictures = ImageStore(**pins[row["source"]]).read(places) if places else []
        for turn in row["history"] or ():
            turn["text"] = cut(turn["text"])
        texts = {side: cut(row[side]) for side in ("query", "target")}
        small = [thumbnail_url(_opened(data), THUMBNAIL_PIXELS) for data in pictures]
        shown.append({**row, **texts, "pictures": small})
    return shown


def _spread(groups: pl.DataFrame, by: str, column: str, count: int) -> list[Any]:
    """At most `count` entries of the lists in `column` for each value of `by`, first ones first."""
    entries = groups.with_columns(place=pl.int_ranges(pl.col(column).list.len()))
    entries = entries.explode(column, "place").sort(by, "place", "source", column)
    return entries.group_by(by, maintain_order=True).head(count)[column].to_list()


def rejected_samples(ledger: pl.LazyFrame, workspace: Workspace) -> list[dict[str, Any]]:
    """Some lines of each rule but those of copies, with what the source has there."""
    place = pl.struct("stage", "source", "sample_id", "file", "line", "item", "rule", "reason", "value")
    first = (
        ledger.filter(~pl.col("rule").is_in([EXACT, NEAR]))
        .group_by("stage", "rule", "source")
        .agg(entry=place.sort_by("file", "line", "item").head(REJECTED_SAMPLES))
        .with_columns(which=pl.format("{}:{}", "stage", "rule"))
    )
    some = _spread(first.collect(engine="streaming"), "which", "entry", REJECTED_SAMPLES)
    return [_with_raw_pair(entry, workspace) for entry in some]


def _with_raw_pair(entry: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    curated = workspace.curated(entry["source"])
    pair = None if entry["item"] is None else _same_pair(curated, entry)
    texts = {} if pair is None else {"query": cut(pair.query), "target": cut(pair.target)}
    pictures = []
    # which would take this process, or more memory than the settings allow
    if pair is not None and entry["rule"] not in (CRASHED, TOO_MANY_PIXELS):
        pictures = raw_pictures(curated, pair)
    return {**entry, "value": cut(entry["value"] or ""), "texts": texts, "pictures": pictures}


def _same_pair(curated: Path, entry: dict[str, Any]) -> RawPair | None:
    """The pair of a ledger's line, where its source has not changed there since."""
    pair = raw_pair(curated, entry["file"], entry["line"], entry["item"])
    return pair if pair is not None and may_be(pair, entry["sample_id"]) else None


def raw_pictures(curated: Path, pair: RawPair) -> list[str]:
    """The pictures that a pair names in its source, small; those that cannot be read are left out."""
    source = curated_source(curated)
    if source is None:
        return []
    try:
        root = ImageRoot(source.image_root)
    except ValueError:  # the folder is gone
        return []
    return list(_readable((*pair.query_images, *pair.target_images)[:MAX_PICTURES], root))


def _readable(references: Sequence[RawImage], root: ImageRoot) -> Iterable[str]:
    for reference in references:
        try:
            data = root.read(reference) if isinstance(reference, str) else reference
            yield thumbnail_url(decode_picture(data, MAX_IMAGE_PIXELS).image, THUMBNAIL_PIXELS)
        except PictureError:  # why it was rejected stands beside it
            continue


def near_copies(ledger: pl.LazyFrame, workspace: Workspace) -> list[dict[str, Any]]:
    """Near copies that were dropped, beside the row that stays, from as many sources as there are."""
    place = pl.struct("source", "sample_id", "file", "line", "item", "reason", "value")
    near = (
        ledger.filter(pl.col("rule") == NEAR)
        .group_by("source")
        .agg(entry=place.sort_by("file", "line", "item").head(COPY_SAMPLES))
        .with_columns(which=pl.lit(0))
        .collect(engine="streaming")
    )
    some = _spread(near, "which", "entry", COPY_SAMPLES)
    tables = workspace.curated("[!.]*") / "pairs.parquet"  # others are still being written
    kept = {
        row["sample_id"]: row
        for row in pl.scan_parquet(tables)
        .filter(pl.col("sample_id").is_in([entry["value"] for entry in some]))
        .select("sample_id", "query", "target")
        .collect(engine="streaming")
        .iter_rows(named=True)
    }
    shown = []
    for entry in sorted(some, key=lambda entry: (entry["source"], entry["file"], entry["line"])):
        curated = workspace.curated(entry["source"])
        dropped = _same_pair(curated, entry)
        if dropped is None or entry["value"] not in kept:
            continue
        stays = kept[entry["value"]]
        texts = [
            (side, *marked(*beside(getattr(dropped, side), stays[side]))) for side in ("query", "target")
        ]
        shown.append({**entry, "texts": texts, "pictures": raw_pictures(curated, dropped)})
    return shown


def beside(left: str, right: str) -> tuple[str, str]:
    """Two texts, cut so that the first place where they differ is seen."""
    if cut(left) != cut(right) or left == right:
        return cut(left), cut(right)
    pairs = zip_longest(left, right)
    differ = next(place for place, (ours, theirs) in enumerate(pairs) if ours != theirs)
    before = "\n".join(left[max(differ - CHARS_BEFORE, 0) : differ].split("\n")[-LINES_BEFORE:])
    return "… " + cut(before + left[differ:]), "… " + cut(before + right[differ:])


def cut(text: str) -> str:
    """The text, cut where it has many characters or lines."""
    return html_page.cut(text, MAX_CHARS, MAX_LINES)


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
