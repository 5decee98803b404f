"""Columns that stand for a part of a pair: its whole query, its earlier turns, the pictures of a side."""

import polars as pl


def earlier_turns() -> pl.Expr:
    """The earlier turns of a dialogue as one text; null where there are none."""
    return pl.col("history").list.eval(pl.element().struct.field("text")).list.join("\n")


def whole_query() -> pl.Expr:
    """The query side as one text: earlier turns of a dialogue belong to it."""
    turns = earlier_turns()
    return pl.when(turns.is_null()).then("query").otherwise(turns + "\n" + pl.col("query"))


def num_pictures(side: str) -> pl.Expr:
    """Pictures of a side."""
    return pl.col(f"{side}_images").list.len().fill_null(0).cast(pl.Int32)
