"""Components: rows that must stand on the same side of the split, because they share something.

Rows are linked by keys: a picture, a text-only side, a declared group, an earlier component. Keys that mean
the same (near pictures, near sides) are linked to each other. Linked rows form a component: union-find over
the graph of rows and keys.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quality.assignments import links_of_row
from quality.duplicates import UNBUFFERED, comparable, near_pairs, repeated
from quality.pair_columns import num_pictures, whole_query

SAME_SCHEMA = {"a": pl.UInt64, "b": pl.UInt64}


def link_keys(rows: pl.LazyFrame, min_linking_chars: int) -> pl.LazyFrame:
    """What rows can be linked by: `row`, `key`, one line for each thing of a row that links.

    A picture links wherever it stands. A text links only where its side has no picture and where it has
    `min_linking_chars` characters, since `Yes` and `What is the total?` say nothing about where rows come
    from. Groups are those of a source, and so are dialogues. Hard negatives link nothing: they are other
    rows' targets.

    Args:
        rows: `row` and the columns of a pair
    """
    sides = linking_sides(rows, min_linking_chars)
    return pl.concat([_pictures_and_groups(rows, "key"), sides.select("row", "key"), _dialogues(rows)])


def _pictures_and_groups(rows: pl.LazyFrame, name: str) -> pl.LazyFrame:
    return rows.select("row", links_of_row().alias(name)).explode(name).drop_nulls(name)


def _dialogues(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Pairs of a dialogue that gives one for each answer: what one of them asks stands before the next."""
    named = rows.select("row", "history", key=pl.concat_str(dialogue(), separator="\n")).drop_nulls("key")
    keys = named.with_columns(pl.col("key").hash(seed=0))
    later = keys.filter(pl.col("history").is_not_null()).select("row", "key")
    first = keys.filter(pl.col("history").is_null()).select("row", "key")
    return pl.concat([later, first.join(later.select("key").unique(), on="key", how="semi")])


def dialogue() -> list[pl.Expr]:
    """Texts that together name the record of a pair, which is the dialogue where it has earlier turns."""
    return [pl.lit("dialogue"), pl.col("source"), pl.col("file"), pl.col("line").cast(pl.String)]


def linking_sides(rows: pl.LazyFrame, min_linking_chars: int) -> pl.LazyFrame:
    """Text-only sides long enough to link: `row`, `side` (a number of its own), `text`, `key` of the text."""
    query = rows.select(
        "row",
        side=2 * pl.col("row"),
        pictures=num_pictures("query"),
        text=comparable(whole_query()),
    )
    target = rows.select(
        "row",
        side=2 * pl.col("row") + 1,
        pictures=num_pictures("target"),
        text=comparable(pl.col("target")),
    )
    return (
        pl.concat([query, target])
        .filter(pl.col("pictures") == 0, pl.col("text").str.len_chars() >= min_linking_chars)
        .select("row", "side", "text", key=("text:" + pl.col("text")).hash(seed=0))
    )


def links_alone(min_linking_chars: int) -> dict[str, pl.Expr]:
    """Whether a side links by itself: it has a picture, or a text that is long enough. By side."""
    texts = {"query": whole_query(), "target": pl.col("target")}
    return {
        side: (num_pictures(side) > 0) | (comparable(text).str.len_chars() >= min_linking_chars)
        for side, text in texts.items()
    }


def linking_hashes(rows: pl.LazyFrame, min_linking_chars: int) -> pl.LazyFrame:
    """Hashes of what links rows by itself: pictures, groups, sides with a picture or a text long enough.

    Returns `row`, `hash`. Unlike the keys, the hashes are kept over all training sets, in the assignments.

    Args:
        rows: `row` and the columns of a tagged pair
    """
    sides = [
        rows.filter(links).select("row", hash=f"{side}_hash")
        for side, links in links_alone(min_linking_chars).items()
    ]
    return pl.concat([*sides, _pictures_and_groups(rows, "hash")])


def most_shared(rows: pl.LazyFrame, min_linking_chars: int) -> tuple[str, str, int] | None:
    """What most rows have in common of all that links: its kind, its value and how many rows have it.

    The kind is `picture`, `group_id`, `dialogue` or `text`. Where near copies link rows in a chain, few have
    anything in common. None: no row has anything that links.

    Args:
        rows: `row` and the columns of a pair, of one component
    """
    kinds = {
        "picture": pl.concat(
            rows.select("row", value=f"{side}_images").explode("value") for side in ("query", "target")
        ),
        "group_id": rows.select("row", value="group_id"),
        "dialogue": _dialogues(rows)
        .select("row")
        .join(rows.select("row", value=pl.format("{}: {}:{}", "source", "file", "line")), on="row"),
        "text": linking_sides(rows, min_linking_chars).select("row", value="text"),
    }
    links = pl.concat(table.with_columns(kind=pl.lit(kind)) for kind, table in kinds.items())
    counts = links.drop_nulls("value").unique().group_by("kind", "value").len()
    most = counts.sort("len", "kind", "value", descending=[True, False, False]).head(1)
    found = most.collect(engine="streaming").rows()
    return found[0] if found else None


def near_sides(
    rows: pl.LazyFrame, min_linking_chars: int, threshold: float, seed: int, scratch: Path
) -> pl.DataFrame:
    """Keys of text-only sides that are near each other: `a`, `b`."""
    sides = linking_sides(rows, min_linking_chars)
    keys = sides.select("side", "key").collect(engine="streaming", optimizations=UNBUFFERED)
    shared = keys.join(repeated(keys["key"]).to_frame(), on="key", how="semi")
    others = shared.filter(pl.col("side") > pl.col("side").min().over("key")).select("side")
    distinct = sides.join(others.lazy(), on="side", how="anti").select(
        "text", row="side", block=pl.lit(0, dtype=pl.UInt64)
    )
    pairs = near_pairs(distinct, ["text"], threshold, seed, scratch)
    return (
        pairs.join(keys.rename({"key": "key_a", "side": "a"}), on="a")
        .join(keys.rename({"key": "key_b", "side": "b"}), on="b")
        .select(a="key_a", b="key_b")
    )


def earlier_links(rows: pl.DataFrame, assignments: pl.DataFrame, predecessors: pl.DataFrame) -> pl.DataFrame:
    """Links between rows that shared a component in an earlier training set: `row`, `key`.

    What was linked once stays linked, also where the row that linked it is gone from the corpus. A row has
    the links of its predecessors, too.

    Args:
        rows: `row`, `earlier` (the place of its sample in the assignments; null: none)
        assignments: `component`
        predecessors: `row`, `place`
    """
    known = pl.concat([rows.select("row", place="earlier").drop_nulls("place"), predecessors])
    keys = assignments.select(key=pl.col("component").hash(seed=0)).to_series()
    return known.select(pl.col("row").cast(pl.Int64), key=keys.gather(known["place"]))


def copy_links(duplicates: pl.DataFrame) -> pl.DataFrame:
    """Links between a row that is dropped as a copy and the row that stays: `row`, `key`.

    So a copy that evaluated before keeps the one that stays from training.

    Args:
        duplicates: `row`, `kept`
    """
    key = pl.format("copy:{}", "kept").hash(seed=0)
    own = duplicates.select("row", key=key)
    return pl.concat([own, duplicates.select(row="kept", key=key)]).unique()


def connect(num_rows: int, links: pl.DataFrame, same: pl.DataFrame) -> NDArray[np.int32]:
    """The component of each row, as a number: from 0 on, without gaps, in the order of their first rows.

    Args:
        num_rows: rows are numbered from 0
        links: `row`, `key`
        same: `a`, `b`: keys that mean the same
    Shapes:
        returns: [num_rows]
    """
    # A key that stands once links nothing: most do, and they need no place in the graph.
    common = repeated(pl.concat([links["key"], same["a"], same["b"]]).alias("key"))
    places = common.to_frame().with_row_index("place", offset=num_rows)
    own = links.join(places, on="key")
    equal = same.join(places.rename({"key": "a", "place": "row"}), on="a")
    equal = equal.join(places.rename({"key": "b"}), on="b")
    size = num_rows + len(common)
    assert size < 2**31, f"{size} rows and keys: the numbers of the graph have 31 bits"
    begins, ends = (
        np.concatenate([own[name].to_numpy(), equal[name].to_numpy()], dtype=np.int32, casting="unsafe")
        for name in ("row", "place")
    )
    del links, own, equal
    graph = coo_array((np.ones(len(begins), dtype=np.int8), (begins, ends)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels[:num_rows], dtype=np.int32)


def name_components(sample_ids: pl.Series, labels: NDArray[np.int32]) -> pl.Series:
    """The name of each component: the smallest `sample_id` of it, whatever the order of rows.

    Shapes:
        sample_ids, labels: [rows]
        returns: [components]
    """
    sizes = np.bincount(labels)
    first = np.zeros(len(sizes), dtype=np.int64)
    first[labels] = np.arange(len(labels))
    linked = np.flatnonzero(sizes[labels] > 1)
    some = pl.DataFrame({"row": linked, "label": labels[linked], "sample_id": sample_ids.gather(linked)})
    smallest = some.sort("sample_id").unique("label", keep="first")
    first[smallest["label"].to_numpy()] = smallest["row"].to_numpy()
    return sample_ids.gather(first).alias("component")
