"""The split: by component, sticky, and never between linked rows.

Who trains and who evaluates is remembered in a table over all training sets. For each component:

    touches a benchmark that is off limits   its rows leave, except those that already evaluate
    trained before                           trains; rows of it that evaluated retire to the ledger
    evaluated before, never trained          evaluates
    new                                      by seeded hash within its stratum (source, task, language)

The hash orders the new components of a stratum, and the first of them that fill the share evaluate. So the
share holds in small strata too, and the outcome does not depend on the order of rows.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import polars as pl

from vipolyqwen_core.config import SplitSettings
from vipolyqwen_core.contract import Split

OFF_LIMITS = "off_limits"
LINKED_TO_OFF_LIMITS = "linked_to_off_limits"
EVALUATION_RETIRED = "evaluation_retired"
EVALUATION_FULL = "evaluation_full"
STRATUM = ("source", "task", "language")
SMALL_COMPONENT = 100
"""Components up to this size are never too large, however small the corpus."""


@dataclass(frozen=True)
class SplitResult:
    """Where each row goes, and what is to be remembered."""

    rows: pl.DataFrame
    """`row`, `split` (train, eval or null) and, where it is null, the `rule` that says why."""
    assignments: pl.DataFrame
    """The table to persist: sample_id, component, split. Sorted by sample_id."""


def split_rows(rows: pl.DataFrame, assignments: pl.DataFrame, settings: SplitSettings) -> SplitResult:
    """Decide the side of each row.

    Args:
        rows: row, sample_id, component, source, task, language, off_limits (bool), dropped (bool: a
            duplicate, which has no side but whose earlier side counts for its component)
        assignments: sample_id, component, split of earlier training sets
    """
    earlier = assignments.select("sample_id", earlier="split")
    rows = rows.join(earlier, on="sample_id", how="left", maintain_order="left")
    known = rows.group_by("component").agg(
        trained=(pl.col("earlier") == Split.TRAIN.value).any(),
        evaluated=(pl.col("earlier") == Split.EVAL.value).any(),
        banned=pl.col("off_limits").any(),
    )
    rows = rows.join(known, on="component", how="left", maintain_order="left")
    decided = rows.filter(~pl.col("dropped")).with_columns(decision=_decision())
    room = (
        settings.max_eval_pairs
        - decided.filter((pl.col("decision") == "eval") & (pl.col("earlier") == "eval")).height
    )
    growing = decided.filter((pl.col("decision") == "eval") & pl.col("earlier").is_null())
    full = growing.sort("sample_id")[max(room, 0) :]
    room -= growing.height - full.height
    chosen = _choose(decided.filter(pl.col("decision") == "new"), settings, max(room, 0))
    decision = (
        pl.when(pl.col("row").is_in(full["row"].implode()))
        .then(pl.lit(EVALUATION_FULL))
        .when(pl.col("decision") != "new")
        .then("decision")
        .when(pl.col("component").is_in(chosen.implode()))
        .then(pl.lit(Split.EVAL.value))
        .otherwise(pl.lit(Split.TRAIN.value))
    )
    decided = decided.with_columns(decision=decision)
    sided = pl.col("decision").is_in([side.value for side in Split])
    result = decided.select(
        "row",
        split=pl.when(sided).then("decision"),
        rule=pl.when(~sided).then("decision"),
    )
    return SplitResult(result.sort("row"), _remember(rows, decided.filter(sided), assignments))


def _decision() -> pl.Expr:
    """`train`, `eval`, the name of a rule, or `new` where the hash decides."""
    evaluated_before = pl.col("earlier").eq_missing(pl.lit(Split.EVAL.value))
    return (
        pl.when("off_limits")
        .then(pl.lit(OFF_LIMITS))
        .when(pl.col("banned") & (pl.col("trained") | ~evaluated_before))
        .then(pl.lit(LINKED_TO_OFF_LIMITS))
        .when(pl.col("trained") & evaluated_before)
        .then(pl.lit(EVALUATION_RETIRED))
        .when("trained")
        .then(pl.lit(Split.TRAIN.value))
        .when("evaluated")
        .then(pl.lit(Split.EVAL.value))
        .otherwise(pl.lit("new"))
    )


def _choose(new: pl.DataFrame, settings: SplitSettings, room: int) -> pl.Series:
    """The new components that evaluate: at most `room` rows in all."""
    if new.is_empty() or room == 0:
        return pl.Series("component", [], dtype=pl.String)
    share = min(settings.eval_share, room / new.height)
    components = (
        new.sort("sample_id")
        .group_by("component", maintain_order=True)
        .agg(pl.len().alias("size"), *(pl.col(name).first() for name in STRATUM))
    )
    places = np.fromiter((_order(settings.seed, name) for name in components["component"]), dtype=np.uint64)
    components = components.with_columns(order=pl.Series(places)).sort(*STRATUM, "order")
    chosen: list[str] = []
    for _, stratum in components.group_by(STRATUM, maintain_order=True):
        # The fraction of a row is rounded up as often as it is large, by a hash that differs from run to run.
        left = min(int(share * int(stratum["size"].sum()) + (stratum["order"][-1] % 2**32) / 2**32), room)
        for name, size in stratum.select("component", "size").iter_rows():
            if left <= 0:
                break
            if size <= left:
                chosen.append(name)
                left -= size
                room -= size
    return pl.Series("component", chosen, dtype=pl.String)


def _order(seed: int, component: str) -> int:
    """The place of a component among others: a hash that no library's version changes."""
    return int.from_bytes(blake2b(f"{seed}:{component}".encode(), digest_size=8).digest(), "little")


def _remember(rows: pl.DataFrame, sided: pl.DataFrame, assignments: pl.DataFrame) -> pl.DataFrame:
    """The earlier table with the new rows, and every component under its present name."""
    renamed = (
        rows.join(assignments.select("sample_id", old="component"), on="sample_id")
        .select("old", "component")
        .unique(subset="old")
    )
    kept = assignments.join(renamed, left_on="component", right_on="old", how="left").select(
        "sample_id", component=pl.coalesce("component_right", "component"), split="split"
    )
    fresh = sided.filter(pl.col("earlier").is_null()).select("sample_id", "component", split="decision")
    return pl.concat([kept, fresh]).sort("sample_id")


def check_components(rows: pl.DataFrame, settings: SplitSettings) -> dict[str, object]:
    """Size and share of the largest component.

    Args:
        rows: component, source and the others of `split_rows`
    Raises:
        ValueError: it is larger than `max_component_share` allows: the links are wrong
    """
    if rows.is_empty():
        return {"component": None, "rows": 0, "share": 0.0}
    sizes = rows["component"].value_counts(sort=True, name="size").sort("size", "component", descending=True)
    component, size = sizes.row(0)
    share = size / rows.height
    if size > SMALL_COMPONENT and share > settings.max_component_share:
        members = rows.filter(pl.col("component") == component)
        sources = members["source"].value_counts(sort=True).rows()
        raise ValueError(
            f"the largest component of linked rows holds {size} of {rows.height} rows ({share:.1%}), allowed "
            f"are {settings.max_component_share:.1%} (split.max_component_share): a picture, a text or a "
            f"declared group is shared by too many rows. Its rows by source: "
            + ", ".join(f"{name} {count}" for name, count in sources)
            + f"; one of them: sample {component}"
        )
    return {"component": component, "rows": size, "share": share}
