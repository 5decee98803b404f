"""What a person sees of a materialisation: row counts, rejects by reason, samples, plots, schema, lineage.

The only place that knows how Dagster displays things. Functions take summaries and files, and return metadata
values; the assets put them together.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.findings import num_rows
from vipolyqwen_core.contract import Column
from vipolyqwen_core.corpus.tables import StageSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE_COLUMNS = ("task", "language", "query", "target", "score", "file", "line")
MAX_CELL_CHARS = 120


def stage_metadata(summary: StageSummary, folder: Path, columns: Sequence[Column] = ()) -> dict[str, Any]:
    """Everything there is to say about one run of a data stage, from its summary and its ledger."""
    metadata: dict[str, Any] = {
        "dagster/row_count": summary.pairs_out,
        "pairs in": summary.pairs_in,
        "pairs rejected": sum(summary.rejected.values()),
        "rejects by reason": rejects_table(folder / "ledger.parquet"),
        "seconds": round(summary.seconds, 2),
        "reused": reused(summary.reused),
        "folder": dg.MetadataValue.path(str(folder)),
    }
    if summary.records:
        metadata["records read"] = summary.records
        metadata["records rejected"] = sum(summary.records_rejected.values())
    if columns:
        metadata["dagster/column_schema"] = column_schema(columns)
    if counts := {**summary.records_rejected, **summary.rejected}:
        metadata["rejects"] = plot(bar_chart(counts, "rejected, by rule"), "rejected, by rule")
    for name, value in summary.details.items():
        if isinstance(value, str | int | float | bool):
            metadata[name.replace("_", " ")] = value
        elif isinstance(value, Mapping) and value and all(isinstance(v, int | float) for v in value.values()):
            metadata[name.replace("_", " ")] = table([name.replace("_", " "), ""], list(value.items()))
    return metadata


def reused(flag: bool) -> dg.MetadataValue[str]:
    """Whether an earlier result stands."""
    text = "**reused: true**: nothing it depends on has changed" if flag else "reused: false"
    return dg.MetadataValue.md(text)


def was_reused(metadata: Mapping[str, Any]) -> bool:
    """What `reused` said, by the values of a materialisation's metadata."""
    return "true" in str(metadata.get("reused", ""))


def rejects_table(ledger: Path) -> dg.MetadataValue[str]:
    """Rejected rows by stage and rule, with one example of each."""
    import polars as pl

    rows = (
        pl.scan_parquet(ledger)
        .group_by("stage", "rule")
        .agg(pl.len(), pl.first("reason"), pl.first("value"), pl.first("file"), pl.first("line"))
        .sort("len", "stage", "rule", descending=[True, False, False])
        .collect()
    )
    if rows.is_empty():
        return dg.MetadataValue.md("nothing was rejected")
    header = ["stage", "rule", "rows", "where", "reason of one", "its value"]
    cells = [
        (row["stage"], row["rule"], row["len"], f"{row['file']}:{row['line']}", row["reason"], row["value"])
        for row in rows.iter_rows(named=True)
    ]
    return table(header, cells)


def sample_table(
    pairs: Path, rows: int = 8, columns: Sequence[str] = SAMPLE_COLUMNS
) -> dg.MetadataValue[str]:
    """Some rows of a table of pairs (Parquet or Arrow), spread over the whole of it."""
    from quality.polars_tables import scan_table

    scan, count = scan_table(pairs), num_rows(pairs)
    if count == 0:
        return dg.MetadataValue.md("the table is empty")
    shown = [name for name in columns if name in scan.collect_schema().names()]
    sample = scan.select(shown).gather_every(max(1, count // rows)).head(rows).collect()
    return table(shown, sample.rows())


def count_table(pairs: Path, by: Sequence[str]) -> dg.MetadataValue[str]:
    """Rows of a table of pairs, counted by columns."""
    import polars as pl

    from quality.polars_tables import scan_table

    counts = scan_table(pairs).group_by(*by).agg(pl.len().alias("pairs")).sort(*by).collect()
    return table([*by, "pairs"], counts.rows())


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MetadataValue[str]:
    """A Markdown table."""
    lines = [" | ".join(["", *header, ""]).strip(), " | ".join(["", *["---"] * len(header), ""]).strip()]
    lines += [" | ".join(["", *(cell(value) for value in row), ""]).strip() for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def cell(value: Any) -> str:
    """A value as the text of one cell: on one line, cut, with nothing that ends the cell or starts HTML.

    Nor does it make a link, a picture, which the browser would fetch from wherever a corpus says, or code.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    text = text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
    return re.sub(r"([\\|\[`])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def column_schema(columns: Sequence[Column]) -> dg.TableSchema:
    """The contract's columns, with what they mean."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name=column.name, type=column.dtype, description=column.meaning)
            for column in columns
        ]
    )


def carried_columns(
    columns: Sequence[Column], upstream: str, before: Sequence[Column]
) -> dg.TableColumnLineage:
    """Lineage of a stage that hands on the columns of the stage before it."""
    carried = {column.name for column in before}
    return dg.TableColumnLineage(
        deps_by_column={
            column.name: [dg.TableColumnDep(asset_key=dg.AssetKey(upstream), column_name=column.name)]
            for column in columns
            if column.name in carried
        }
    )


def bar_chart(counts: Mapping[str, int | float], title: str) -> "Figure":
    """Horizontal bars, the largest on top."""
    from matplotlib.figure import Figure

    ordered = sorted(counts.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in ordered], [count for _, count in ordered], color="#4c72b0")
    labels = [f"{count:,}" if isinstance(count, int) else f"{count:.4g}" for _, count in ordered]
    axes.bar_label(bars, labels, padding=3)
    axes.margins(x=0.12)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot(figure: "Figure", title: str) -> dg.MetadataValue[str]:
    """A figure as a Markdown image that carries its own bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{encoded})")
