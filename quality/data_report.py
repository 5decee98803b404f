"""The data report: one HTML file for people who would rather look at the data than at tables.

Funnel from raw files to training set, rejects by rule, counts, histograms, samples of kept rows with their
pictures, samples of rejected rows with what was wrong, and copies beside what they copy.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure
from PIL import Image

from quality.row_duplicates import EXACT, NEAR
from quality.rules import RULES
from quality.trace import raw_pair
from quality.validate import accepted_folder
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.tables import StageSummary, read_stage, written_aside
from vipolyqwen_core.workspace import Workspace

TEMPLATE = "data_report.html.jinja"
KEPT_SAMPLES = 3
"""Rows of each task that are shown."""
REJECTED_SAMPLES = 2
"""Rows of each rule that are shown."""
COPY_SAMPLES = 6
THUMBNAIL_PIXELS = 180
HISTOGRAMS = (
    ("query_tokens", "tokens of the query"),
    ("target_tokens", "tokens of the target"),
    ("pictures", "pictures of a pair"),
    ("score", "score of a scored pair"),
)
BINS = 30


@dataclass(frozen=True)
class FunnelRow:
    """One source on its way; pairs, but for the records."""

    source: str
    records: int
    read: int
    curated: int
    tagged: int
    validated: int
    train: int
    eval: int


def write_data_report(workspace: Workspace, path: Path) -> Path:
    """Write the report of the training set that stands in a workspace.

    Raises:
        ValueError: no training set was built yet
    """
    summary = read_stage(workspace.training_set)
    if summary is None:
        raise ValueError(f"no training set in {workspace.training_set}: build it first")
    sources = list(summary.details["sources"])
    rows = pl.scan_ipc([workspace.training_set / f"{split.value}.arrow" for split in Split])
    ledger = _ledger(workspace, sources)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(TEMPLATE).render(
        summary=summary,
        funnel=funnel(workspace, summary),
        rejects=_rejects(ledger),
        counts=summary.details["counts"],
        histograms=_histograms(rows),
        components=_component_sizes(rows),
        kept=_kept_samples(rows, summary.details["sources"], workspace),
        rejected=_rejected_samples(ledger),
        copies=_copies(ledger, workspace),
    )
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path


def funnel(workspace: Workspace, summary: StageSummary) -> list[FunnelRow]:
    """What became of each source, from its files to the two sides of the split."""
    rows = []
    for name, facts in summary.details["sources"].items():
        curated, tagged = read_stage(workspace.curated(name)), read_stage(workspace.tagged(name))
        rows.append(
            FunnelRow(
                source=name,
                records=curated.records if curated else 0,
                read=curated.pairs_in if curated else 0,
                curated=curated.pairs_out if curated else 0,
                tagged=tagged.pairs_out if tagged else 0,
                validated=facts["pairs_in"],
                train=facts["train"],
                eval=facts["eval"],
            )
        )
    return rows


def _ledger(workspace: Workspace, sources: Sequence[str]) -> pl.LazyFrame:
    """The ledgers of all stages of the sources."""
    files = [workspace.training_set / "ledger.parquet"]
    for name in sources:
        folders = [
            workspace.curated(name),
            workspace.tagged(name),
            accepted_folder(workspace.validated(name)),
        ]
        files += [folder / "ledger.parquet" for folder in folders if folder is not None]
    return pl.concat([pl.scan_parquet(file) for file in files if file.is_file()])


def _rejects(ledger: pl.LazyFrame) -> list[dict[str, Any]]:
    counts = (
        ledger.group_by("stage", "rule")
        .agg(pl.len().alias("rows"), pl.col("source").unique().sort())
        .collect()
    )
    return [
        {**row, "sentence": RULES.get(row["rule"], "")}
        for row in counts.sort("rows", "stage", "rule", descending=[True, False, False]).to_dicts()
    ]


def _histograms(rows: pl.LazyFrame) -> list[tuple[str, str]]:
    """A title and a picture for each quantity, with one line for each task."""
    pictures = pl.col("query_images").list.len() + pl.col("target_images").list.len()
    table = rows.select("task", "query_tokens", "target_tokens", "score", pictures=pictures).collect()
    plots = []
    for column, title in HISTOGRAMS:
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.subplots()
        values = table.drop_nulls(column)
        if values.is_empty():
            continue
        by_task = values.partition_by("task", as_dict=True)
        names = sorted(str(task) for (task,) in by_task)
        axes.hist(
            [by_task[(name,)][column].to_numpy() for name in names],
            bins=BINS, histtype="step", label=names, linewidth=1.3,
        )  # fmt: skip
        axes.set_xlabel(title)
        axes.set_ylabel("pairs")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
        plots.append((title, _svg(figure)))
    return plots


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _component_sizes(rows: pl.LazyFrame) -> list[dict[str, int]]:
    """How many components have how many pairs, the largest sizes first."""
    sizes = rows.group_by("component").len(name="pairs").group_by("pairs").len(name="components")
    return sizes.sort("pairs", descending=True).head(12).collect().to_dicts()


def _kept_samples(rows: pl.LazyFrame, sources: dict[str, Any], workspace: Workspace) -> list[dict[str, Any]]:
    """Some rows of each task, with their pictures, the same at each run."""
    columns = ["sample_id", "source", "task", "language", "split", "query", "history", "target", "score"]
    some = rows.select(*columns, "query_image_rows", "target_image_rows").filter(
        pl.col("sample_id").rank("ordinal").over("task") <= KEPT_SAMPLES
    )
    shown = []
    for row in some.sort("task", "sample_id").collect().to_dicts():
        places = row.pop("query_image_rows") + row.pop("target_image_rows")
        stage = read_stage(workspace.validated(row["source"]) / sources[row["source"]]["version"])
        images = stage.details["images"] if stage is not None else None
        pictures = ImageStore(images["path"], images["version"]).read(places) if images and places else []
        shown.append({**row, "pictures": [_thumbnail(data) for data in pictures]})
    return shown


def _thumbnail(data: bytes) -> str:
    """A small picture as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rejected_samples(ledger: pl.LazyFrame) -> list[dict[str, Any]]:
    """Some lines of each rule, the same at each run."""
    place = pl.struct("source", "file", "line", "item").rank("ordinal").over("stage", "rule")
    some = ledger.filter(~pl.col("rule").is_in([EXACT, NEAR])).with_columns(place=place)
    return (
        some.filter(pl.col("place") <= REJECTED_SAMPLES).sort("stage", "rule", "place").collect().to_dicts()
    )


def _copies(ledger: pl.LazyFrame, workspace: Workspace) -> list[dict[str, Any]]:
    """Near copies that were dropped, beside the row that stays."""
    near = ledger.filter(pl.col("rule") == NEAR).sort("sample_id").head(COPY_SAMPLES).collect()
    shown = []
    for row in near.iter_rows(named=True):
        dropped = raw_pair(workspace.curated(row["source"]), row["file"], row["line"], row["item"])
        kept = (
            pl.scan_parquet(workspace.curated("*") / "pairs.parquet")
            .filter(pl.col("sample_id") == row["value"])
            .select("query", "target")
            .first()
            .collect()
        )
        if dropped is None or kept.is_empty():
            continue
        query, target = kept.row(0)
        texts = [("query", dropped.query, query), ("target", dropped.target, target)]
        shown.append({"reason": row["reason"], "texts": texts})
    return shown
