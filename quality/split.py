"""The split: by component, sticky, and never between linked rows.

Who trains and who evaluates is remembered in a table over all training sets. For each component:

    touches a benchmark that is off limits   its rows leave, except those that already evaluate
    trained before                           trains; rows of it that evaluated retire to the ledger
    evaluated before, never trained          evaluates
    new                                      by seeded hash within its stratum (source, task, language)

Rows that are gone from the corpus count for their component, too, and a copy that was dropped is remembered
with the side of the row that stays: what trained once, or was linked to what did, never evaluates later.

The hash orders the new components of a stratum, and the first of them that fill the share evaluate. So the
share holds in small strata too, and the outcome does not depend on the order of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import polars as pl

from quality.assignments import LINKS, SIDE
from quality.id_numbers import spell
from quality.picture_tasks import PICTURE_OF_OTHER_TASK
from vipolyqwen_core.config import SplitSettings
from vipolyqwen_core.contract import Split

OFF_LIMITS = "off_limits"
LINKED_TO_OFF_LIMITS = "linked_to_off_limits"
EVALUATION_RETIRED = "evaluation_retired"
EVALUATION_FULL = "evaluation_full"
STRATUM = ("source", "task", "language")
SMALL_COMPONENT = 100
"""Components up to this size are never too large, however small the corpus."""
NEW = "new"
LEFT_OUT_BY = (OFF_LIMITS, LINKED_TO_OFF_LIMITS, EVALUATION_RETIRED, EVALUATION_FULL, PICTURE_OF_OTHER_TASK)
DECISION = pl.Enum([*SIDE.categories, *LEFT_OUT_BY, NEW])
ORDERED_AT_ONCE = 100_000
"""Components whose names are spelled at once."""


@dataclass(frozen=True)
class SplitResult:
    """Where each row goes, and what is to be remembered."""

    rows: pl.DataFrame
    """`row`, `split` (train, eval or null) and, where it is null, the `rule` that says why; both null for a
    duplicate. Sorted by row."""
    assignments: pl.DataFrame
    """The table to persist, SCHEMA of `assignments.py`. Sorted by sample_id."""


def split_rows(
    rows: pl.DataFrame,
    names: pl.Series,
    assignments: pl.DataFrame,
    predecessors: pl.DataFrame,
    copies: pl.DataFrame,
    settings: SplitSettings,
) -> SplitResult:
    """Decide the side of each row.

    Args:
        rows: row, sample_id, content, links, component (its number), source, task, language, off_limits
            (bool), dropped (bool: a duplicate, which has no side but whose earlier side counts for its
            component), earlier (the place of its sample in `assignments`; null: new). Text columns of the
            stratum are Enums in the order of the alphabet, or texts
        names: name of each component, by number
        assignments: SCHEMA of `assignments.py`, of earlier training sets
        predecessors: row, place: assigned samples that are gone and whose sides count for a row's component
        copies: row, sample_id, content: samples that were dropped as copies of a row
    """
    decided = _decide_new(_decide_by_history(rows, len(names), assignments, predecessors), names, settings)
    has_side = pl.col("decision").is_in([side.value for side in Split])
    result = decided.select(
        "row",
        split=pl.when(has_side).then("decision"),
        rule=pl.when(~has_side).then("decision"),
    )
    side = pl.coalesce("earlier", pl.when(has_side).then("decision").cast(SIDE))
    known = decided.select("row", "sample_id", "component", "earlier", split=side)
    fresh = known.with_columns(rows["content"], rows["links"]).filter(
        pl.col("earlier").is_null(), pl.col("split").is_not_null()
    )
    del decided  # as `known` below: a retraining knows most rows, and a copy of its tables is half a gigabyte
    copied = _of_copies(copies, known.drop("earlier").drop_nulls("split"), names, assignments)
    del known
    fresh = pl.concat([fresh.select(copied.columns), copied])
    return SplitResult(result.sort("row"), _remember(rows, names, fresh, assignments, predecessors))


def _decide_by_history(
    rows: pl.DataFrame, num_components: int, assignments: pl.DataFrame, predecessors: pl.DataFrame
) -> pl.DataFrame:
    """What benchmarks and earlier training sets decide: the rows with `earlier`, now a side, and `decision`.

    That is `new` where they decide nothing, and null for a duplicate.
    """
    component = rows["component"].to_numpy()
    earlier = assignments["split"].gather(rows["earlier"])
    inherited = assignments["split"].gather(predecessors["place"])

    def any_of_component(found: pl.Series) -> pl.Series:
        has = np.zeros(num_components, dtype=bool)
        has[component[found.to_numpy()]] = True
        return pl.Series(has[component])

    def had(side: Split) -> pl.Series:
        heirs = predecessors["row"].filter(inherited == side.value)
        return (earlier == side.value).fill_null(False) | rows["row"].is_in(heirs.implode())

    known = rows.with_columns(
        earlier=earlier,
        trained=any_of_component(had(Split.TRAIN)),
        evaluated=any_of_component(had(Split.EVAL)),
        banned=any_of_component(rows["off_limits"]),
    )
    decision = pl.when(~pl.col("dropped")).then(_decision())
    return known.select("row", "sample_id", "component", *STRATUM, "earlier", decision=decision)


def _decide_new(decided: pl.DataFrame, names: pl.Series, settings: SplitSettings) -> pl.DataFrame:
    """The rows with no `new` left: the hash chooses which new components evaluate, while there is room.

    Room is `max_eval_pairs`: rows that evaluated before have it first, then new rows of their components,
    of which those that find none leave.
    """
    evaluating = decided.filter(pl.col("decision") == Split.EVAL.value)
    joining = evaluating.filter(pl.col("earlier").is_null()).sort("sample_id")
    staying = evaluating.filter(pl.col("earlier") == Split.EVAL.value)
    room = max(settings.max_eval_pairs - staying.height, 0)
    full = joining[room:]
    chosen = _choose(
        decided.filter(pl.col("decision") == NEW), names, settings, max(room - joining.height, 0)
    )
    evaluates = np.zeros(len(names), dtype=bool)
    evaluates[chosen] = True
    decision = (
        pl.when(pl.col("row").is_in(full["row"].implode()))
        .then(pl.lit(EVALUATION_FULL, dtype=DECISION))
        .when(pl.col("decision").ne_missing(pl.lit(NEW, dtype=DECISION)))
        .then("decision")
        .when(pl.Series(evaluates[decided["component"].to_numpy()]))
        .then(pl.lit(Split.EVAL.value, dtype=DECISION))
        .otherwise(pl.lit(Split.TRAIN.value, dtype=DECISION))
    )
    return decided.select("row", "sample_id", "component", "earlier", decision=decision)


def _decision() -> pl.Expr:
    """`train`, `eval`, the name of a rule, or `new` where the hash decides."""
    evaluated_before = pl.col("earlier").eq_missing(pl.lit(Split.EVAL.value, dtype=SIDE))

    def decided(name: str) -> pl.Expr:
        return pl.lit(name, dtype=DECISION)

    return (
        pl.when("off_limits")
        .then(decided(OFF_LIMITS))
        .when(pl.col("banned") & ~evaluated_before)
        .then(decided(LINKED_TO_OFF_LIMITS))
        .when(pl.col("trained") & evaluated_before)
        .then(decided(EVALUATION_RETIRED))
        .when("trained")
        .then(decided(Split.TRAIN.value))
        .when("evaluated")
        .then(decided(Split.EVAL.value))
        .otherwise(decided(NEW))
    )


def _choose(new: pl.DataFrame, names: pl.Series, settings: SplitSettings, room: int) -> list[int]:
    """The new components that evaluate: at most `room` rows in all."""
    if new.is_empty() or room == 0:
        return []
    share = min(settings.eval_share, room / new.height)
    components = _first_rows(new, len(names))
    order = _orders(settings.seed, names.gather(components["component"]))
    components = components.with_columns(order=order).sort(*STRATUM, "order")
    chosen: list[int] = []
    for _, stratum in components.group_by(STRATUM, maintain_order=True):
        # The fraction of a row is rounded up as often as it is large, by a hash that differs from run to run.
        left = min(int(share * int(stratum["size"].sum()) + (stratum["order"][-1] % 2**32) / 2**32), room)
        for component, size in stratum.select("component", "size").iter_rows():
            if left <= 0:
                break
            if size <= left:
                chosen.append(component)
                left -= size
                room -= size
    return chosen


def _first_rows(rows: pl.DataFrame, num_components: int) -> pl.DataFrame:
    """`component`, STRATUM, `size` of each component: those of its row with the smallest `sample_id`."""
    component = rows["component"].to_numpy()
    sizes = np.bincount(component, minlength=num_components)[component]
    rows = rows.select("sample_id", "component", *STRATUM, size=pl.Series(sizes, dtype=pl.UInt32))
    several = rows.filter(pl.col("size") > 1).sort("sample_id").unique("component", keep="first")
    return pl.concat([rows.filter(pl.col("size") == 1), several]).drop("sample_id")


def _orders(seed: int, names: pl.Series) -> pl.Series:
    """The place of components among others: a hash of the name that no library's version changes."""
    prefix = f"{seed}:".encode()
    places = [np.zeros(0, dtype="<u8")]
    for start in range(0, len(names), ORDERED_AT_ONCE):
        spelled = spell(names[start : start + ORDERED_AT_ONCE])
        digests = (blake2b(prefix + name.encode(), digest_size=8).digest() for name in spelled)
        places.append(np.frombuffer(b"".join(digests), dtype="<u8"))
    return pl.Series(np.concatenate(places), dtype=pl.UInt64)


def _of_copies(
    copies: pl.DataFrame, known: pl.DataFrame, names: pl.Series, assignments: pl.DataFrame
) -> pl.DataFrame:
    """Copies that are not remembered yet, each with what is remembered of a row that stays in its place.

    Where its rows are on both sides, the copy trains: it was trained on, whatever else it resembles.
    """
    found = copies.join(known.select("row", "component", "split"), on="row")
    # An equal row of another source has the same id as the one that stays.
    for others in (assignments, known):
        same = others.select("sample_id").filter(pl.col("sample_id").is_in(found["sample_id"].implode()))
        found = found.join(same, on="sample_id", how="anti")
    name = names.gather(found["component"])
    found = found.sort("sample_id", "split", name).unique("sample_id", keep="first")
    links = pl.lit([], dtype=LINKS)  # the row that stays remembers its own
    return found.select("sample_id", "component", "content", links.alias("links"), "split")


def _remember(
    rows: pl.DataFrame,
    names: pl.Series,
    fresh: pl.DataFrame,
    assignments: pl.DataFrame,
    predecessors: pl.DataFrame,
) -> pl.DataFrame:
    """The earlier table with the new samples that have a side, and every component under its present name."""
    known = rows["earlier"].is_not_null()
    order = np.full(assignments.height, -1, dtype=np.int64)
    order[rows["earlier"].filter(known).to_numpy()] = np.flatnonzero(known.to_numpy())
    stays = assignments.select("sample_id", "split").filter(pl.Series(order >= 0))
    held = order[order >= 0]
    # A row that is gone from the corpus goes on with those that it counts for.
    gone = assignments.with_row_index("place").filter(pl.Series(order < 0))
    heirs = predecessors.unique("place").join(rows.select("row", "component"), on="row")
    heirs = heirs.select("place", heir=names.gather(heirs["component"]))
    gone = gone.join(heirs, on="place", how="left")
    tables = [
        stays.with_columns(
            component=names.gather(rows["component"].gather(held)),
            content=rows["content"].gather(held),
            links=rows["links"].gather(held),
        ),
        gone.with_columns(component=pl.coalesce("heir", "component")),
        fresh.with_columns(component=names.gather(fresh["component"])),
    ]
    return pl.concat([table.select(*assignments.columns) for table in tables]).sort("sample_id")


def check_components(
    rows: pl.DataFrame, names: pl.Series, settings: SplitSettings, cause: Callable[[pl.Series], str]
) -> dict[str, object]:
    """Size and share of the largest component.

    Args:
        rows: row, component, source and the others of `split_rows`, of those that may train or evaluate
        names: name of each component, by number
        cause: what links rows of these numbers, as a sentence for a person
    Raises:
        ValueError: it is larger than `max_component_share` allows: the links are wrong
    """
    if rows.is_empty():
        return {"component": None, "rows": 0, "share": 0.0, "of": 0}
    sizes = np.bincount(rows["component"].to_numpy())
    size = int(sizes.max())
    largest = np.flatnonzero(sizes == size)
    number = int(largest[names.gather(largest).arg_max()])
    component = spell(names.gather([number])).item()
    share = size / rows.height
    if size > SMALL_COMPONENT and share > settings.max_component_share:
        members = rows.filter(pl.col("component") == number)
        sources = members["source"].value_counts(sort=True).rows()
        raise ValueError(
            f"the largest component of linked rows holds {size} of {rows.height} rows ({share:.1%}), allowed "
            f"are {settings.max_component_share:.1%} (split.max_component_share): {cause(members['row'])}. "
            "Leave that or some rows out, or raise the limit if they do belong on one side of the split. "
            "Its rows by source: "
            + ", ".join(f"{name} {count}" for name, count in sources)
            + f"; one of them: sample {component}"
        )
    return {"component": component, "rows": size, "share": share, "of": rows.height}
