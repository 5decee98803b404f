"""Metadata: what a person sees of a materialisation."""

import base64
from pathlib import Path

import polars as pl

from assets.metadata import bar_chart, cell, column_schema, plot, rejects_table, sample_table, table
from vipolyqwen_core.contract import LEDGER, PAIR


def test_cells_cannot_break_the_table_or_carry_html() -> None:
    shown = table(["text"], [["a | b\nc"], ["<script>alert(1)</script>"], [None]]).value
    assert shown.splitlines()[2:] == ["| a \\| b c |", "| &lt;script&gt;alert(1)&lt;/script&gt; |", "|  |"]


def test_cells_make_no_links_pictures_or_code() -> None:
    assert cell("![x](http://far/x.png) `a` \\d") == "!\\[x](http://far/x.png) \\`a\\` \\\\d"


def test_long_values_are_cut() -> None:
    assert len(cell("x" * 1000)) == 120


def test_bars_name_counts_whole() -> None:
    figure = bar_chart({"exact_duplicate": 12_345, "mrr": 0.123456}, "rejected")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.1235", "12,345"]


def test_rejects_are_counted_by_rule_with_an_example(tmp_path: Path) -> None:
    rows = [("curated", "empty_target", 3), ("curated", "empty_target", 4), ("read", "broken_json", 7)]
    frame = pl.DataFrame(
        {
            "stage": [row[0] for row in rows],
            "rule": [row[1] for row in rows],
            "reason": ["said why"] * 3,
            "value": ["the value"] * 3,
            "file": ["a.jsonl"] * 3,
            "line": [row[2] for row in rows],
        }
    )
    frame.write_parquet(tmp_path / "ledger.parquet")
    lines = rejects_table(tmp_path / "ledger.parquet").value.splitlines()
    assert lines[2] == "| curated | empty_target | 2 | a.jsonl:3 | said why | the value |"
    assert lines[3].startswith("| read | broken_json | 1 |")


def test_no_rejects_are_said_in_words(tmp_path: Path) -> None:
    schema = {column.name: pl.String for column in LEDGER}
    pl.DataFrame(schema=schema).write_parquet(tmp_path / "ledger.parquet")
    assert rejects_table(tmp_path / "ledger.parquet").value == "nothing was rejected"


def test_samples_are_spread_over_the_table(tmp_path: Path) -> None:
    pl.DataFrame({"query": [str(i) for i in range(100)], "line": range(100)}).write_parquet(
        tmp_path / "p.parquet"
    )
    lines = sample_table(tmp_path / "p.parquet", rows=4).value.splitlines()
    assert lines == [
        "| query | line |",
        "| --- | --- |",
        "| 0 | 0 |",
        "| 25 | 25 |",
        "| 50 | 50 |",
        "| 75 | 75 |",
    ]


def test_plots_carry_their_own_bytes() -> None:
    shown = plot(bar_chart({"a": 1, "b": 2}, "counts"), "counts").value
    start = "![counts](data:image/png;base64,"
    assert shown.startswith(start)
    assert base64.b64decode(shown.removeprefix(start).removesuffix(")")).startswith(b"\x89PNG")


def test_the_schema_shows_every_column_of_the_contract() -> None:
    shown = column_schema(PAIR).columns
    assert [column.name for column in shown] == [column.name for column in PAIR]
    assert all(column.description for column in shown)
