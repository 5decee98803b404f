"""The data report: one HTML file for people who would rather look at the data than at tables.

Funnel from raw files to training set, rejects by rule, failed expectations, counts by task, language and
source, histograms, components, samples of kept and rejected rows with their pictures, and near copies beside
what they copy.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quality.accepted import stages_of
from quality.language import LANGUAGES
from quality.polars_tables import scan_training_set
from quality.report_samples import kept_samples, near_copies, rejected_samples
from quality.rules import RULES
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.hashing import content_digest
from vipolyqwen_core.corpus.tables import StageSummary, read_stage
from vipolyqwen_core.evaluation import html_page, plots
from vipolyqwen_core.evaluation.html_page import write_page
from vipolyqwen_core.evaluation.plots import STYLE, TASK_COLOURS
from vipolyqwen_core.workspace import Workspace

TEMPLATE = "data_report.html.jinja"
HISTOGRAMS = (
    ("query_tokens", "tokens of the query"),
    ("target_tokens", "tokens of the target"),
    ("pictures", "pictures of a pair"),
    ("score", "score of a scored pair"),
)
REPORT_CODE = (
    *sorted(Path(__file__).parent.glob("*.py")),
    Path(__file__).parent / TEMPLATE,
    Path(html_page.__file__),
    Path(plots.__file__),
)
"""Files that decide what a report says: where one changes, reports are written anew. All of this package, so
that none is forgotten: the sentences of the rules, the marks in texts that differ, the names of languages."""
HEAD_CHARS = 1000
"""The mark stands here."""
BINS = 40
SCORE_BINS = 20


@dataclass(frozen=True)
class FunnelRow:
    """One source on its way; pairs, but for the records."""

    source: str
    records: int
    unread: int
    """Records that gave no pair."""
    read: int
    curated: int
    tagged: int
    validated: int
    train: int
    eval: int

    @property
    def kept(self) -> float:
        """Share of all that was read, records that gave no pair among them, that trains or evaluates."""
        read = self.read + self.unread
        return (self.train + self.eval) / read if read else 0.0


def report_is_current(workspace: Workspace, path: Path) -> bool:
    """Whether a report shows what the stages say now, written by this code."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        return report_mark(workspace) in file.read(HEAD_CHARS)


def report_mark(workspace: Workspace) -> str:
    """Hash of all that a report depends on: the stages' summaries and the code that writes it."""
    folders = [workspace.training_set]
    for stages_of_source in held_stages(workspace, _training_summary(workspace)).values():
        folders += stages_of_source
    stages = [file for folder in folders if (file := folder / "stage.json").is_file()]
    return content_digest([*stages, *REPORT_CODE])


def _training_summary(workspace: Workspace) -> StageSummary:
    summary = read_stage(workspace.training_set)
    if summary is None:
        raise ValueError(f"no training set in {workspace.training_set}: build it first")
    return summary


def held_stages(workspace: Workspace, summary: StageSummary) -> dict[str, list[Path]]:
    """Folders of curation, tagging and validation of each source, of the version that a training set holds.

    Another one may have been accepted since.
    """
    return {
        name: stages_of(workspace.validated(name) / facts["version"], name, workspace)
        for name, facts in summary.details["sources"].items()
    }


def write_data_report(workspace: Workspace, path: Path) -> Path:
    """Write the report of the training set that stands in a workspace.

    Raises:
        ValueError: no training set was built yet
    """
    mark = report_mark(workspace)  # first: a version that is accepted meanwhile makes the report an old one
    summary = _training_summary(workspace)
    sources = list(summary.details["sources"])
    rows = scan_training_set(workspace.training_set)
    ledger = whole_ledger(workspace, summary)
    counts = _counts(rows)
    stages = funnel(workspace, summary)
    write_page(
        path,
        Path(__file__).parent / TEMPLATE,
        summary=summary,
        mark=mark,
        funnel=[*stages, _total(stages)] if len(stages) > 1 else stages,
        rejects=_rejects(ledger),
        expectations=failed_expectations(workspace, summary),
        languages=[name for name in LANGUAGES if any(row["language"] == name for row in counts)],
        by_task=_pivot(counts, ["task"], [task.value for task in Task]),
        by_source=_pivot(counts, ["source", "task"], sources),
        histograms=[(title, _svg(figure)) for title, figure in histograms(rows)],
        components=_component_sizes(rows),
        linked=_linked(rows, sources),
        kept=kept_samples(rows, workspace.training_set),
        rejected=rejected_samples(ledger, workspace),
        copies=near_copies(ledger, workspace),
    )
    return path


def funnel(workspace: Workspace, summary: StageSummary) -> list[FunnelRow]:
    """What became of each source, from its files to the two sides of the split."""
    rows = []
    held = held_stages(workspace, summary)
    for name, facts in summary.details["sources"].items():
        curated, tagged = map(read_stage, held[name][:2])
        rows.append(
            FunnelRow(
                source=name,
                records=curated.records if curated else 0,
                unread=sum(curated.records_rejected.values()) if curated else 0,
                read=curated.pairs_in if curated else 0,
                curated=curated.pairs_out if curated else 0,
                tagged=tagged.pairs_out if tagged else 0,
                validated=facts["pairs_in"],
                train=facts["train"],
                eval=facts["eval"],
            )
        )
    return rows


def _total(rows: Sequence[FunnelRow]) -> FunnelRow:
    names = [field.name for field in fields(FunnelRow) if field.name != "source"]
    return FunnelRow("all", **{name: sum(getattr(row, name) for row in rows) for name in names})


def whole_ledger(workspace: Workspace, summary: StageSummary) -> pl.LazyFrame:
    """The ledgers of all stages of the sources, each of the version that the training set holds."""
    files = [workspace.training_set / "ledger.parquet"]
    for folders in held_stages(workspace, summary).values():
        files += [folder / "ledger.parquet" for folder in folders]
    return pl.concat([pl.scan_parquet(file) for file in files if file.is_file()])


def _rejects(ledger: pl.LazyFrame) -> list[dict[str, Any]]:
    """Rows by stage and rule, and how many of them each source has. A rule of an adapter shows one reason."""
    counts = (
        ledger.group_by("stage", "rule", "source")
        .agg(pl.len().alias("rows"), pl.col("reason").min())
        .sort("rows", "source", descending=[True, False])
        .group_by("stage", "rule", maintain_order=True)
        .agg(pl.col("rows").sum(), pl.col("reason").first(), sources=pl.struct("source", "rows"))
        .collect()
    )
    return [
        {**row, "sentence": RULES.get(row["rule"], f"For example: {row['reason']}.")}
        for row in counts.sort("rows", "stage", "rule", descending=[True, False, False]).to_dicts()
    ]


def failed_expectations(workspace: Workspace, summary: StageSummary) -> list[dict[str, Any]]:
    """What the versions that were accepted did not meet; nothing critical, or they had not been."""
    failed = []
    for name, (*_, validated) in held_stages(workspace, summary).items():
        stage = read_stage(validated)
        lines = stage.details["expectations"] if stage is not None else []
        failed += [{"source": name, **line} for line in lines if not line["success"]]
    return failed


def _counts(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    by = ["source", "task", "language", "split"]
    return rows.group_by(by).len(name="pairs").sort(by).collect(engine="streaming").to_dicts()


def _pivot(counts: Sequence[dict[str, Any]], by: Sequence[str], order: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs by language and split for each value of `by`: `names`, `cells` of train and eval, and `all`."""
    found: dict[tuple[str, ...], dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
    for row in counts:
        cells = found[tuple(row[name] for name in by)]
        for language in (row["language"], "all"):
            cells[language, row["split"]] += row["pairs"]
    ordered = sorted(found, key=lambda names: (order.index(names[0]), names))
    return [{"names": names, "cells": found[names]} for names in ordered]


def histograms(rows: pl.LazyFrame) -> list[tuple[str, Figure]]:
    """A title and a figure for each quantity of tagged pairs, with a line or bars for each task."""
    pictures = pl.col("query_images").list.len() + pl.col("target_images").list.len()
    table = rows.select("task", "query_tokens", "target_tokens", "score", pictures=pictures).collect()
    drawn = []
    for column, title in HISTOGRAMS:
        values = table.drop_nulls(column)
        if values.is_empty():
            continue
        edges = _edges(column, float(values[column].max()))  # type: ignore[arg-type]
        by_task = {
            str(task): part[column] for (task,), part in values.partition_by("task", as_dict=True).items()
        }
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(5.4, 2.9), layout="constrained")
            axes = figure.subplots()
            shown = [task for task in Task if task.value in by_task]
            for place, task in enumerate(shown):
                heights = np.histogram(by_task[task.value].to_numpy(), edges)[0]
                look: dict[str, Any] = {"color": TASK_COLOURS[task], "label": task.value}
                if column == "pictures":  # equal heights, which are usual here, would hide each other
                    width = 0.8 / len(shown)
                    axes.bar(edges[:-1] + 0.1 + place * width, heights, width, align="edge", **look)
                else:
                    axes.stairs(heights, edges, lw=1.4, **look)
            axes.set(xlabel=title, ylabel="pairs", yscale="log", ylim=(0.8, None), xlim=(edges[0], edges[-1]))
            if column == "pictures":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.legend(loc="outside upper center", ncols=len(Task), fontsize=8, columnspacing=1.0)
            drawn.append((title, figure))
    return drawn


def _edges(column: str, largest: float) -> np.ndarray[Any, Any]:
    """Edges of the bins: one for each number of pictures, fixed ones for scores."""
    if column == "pictures":
        return np.arange(int(largest) + 2) - 0.5
    if column == "score":
        edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
        edges[:-1] -= 1e-6  # round scores are a little off in float32: 0.7 belongs between 0.7 and 0.75
        return edges
    return np.linspace(0.0, max(largest, 1.0), BINS + 1)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):  # ids by content: equal data, equal pages
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _component_sizes(rows: pl.LazyFrame) -> list[dict[str, int]]:
    """How many components have how many pairs, the largest sizes first."""
    sizes = rows.group_by("component").len(name="pairs").group_by("pairs").len(name="components")
    return sizes.sort("pairs", descending=True).head(12).collect().to_dicts()


def _linked(rows: pl.LazyFrame, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs, components and the largest component of each source, counting its own pairs only."""
    sizes = rows.group_by("source", "component").len(name="pairs")
    found = sizes.group_by("source").agg(
        pl.col("pairs").sum(), components=pl.len(), largest=pl.col("pairs").max()
    )
    by_source = {row["source"]: row for row in found.collect(engine="streaming").to_dicts()}
    return [by_source[name] for name in sources if name in by_source]
