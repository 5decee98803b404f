"""A row takes after the one in whose place it stands."""

import numpy as np
import polars as pl

from quality.assignments import LINKS, SCHEMA, UNKNOWN, content, earlier_places
from quality.components import connect, earlier_links, name_components
from quality.id_numbers import ID_NUMBER
from quality.predecessors import copies_of_rows, find_predecessors
from quality.split import split_rows
from vipolyqwen_core.config import SplitSettings

NOTHING_DROPPED = pl.LazyFrame(schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER})
NO_SIDES = pl.LazyFrame(schema={"row": pl.Int64, "hash": pl.UInt64})
NO_COPIES = pl.DataFrame(schema={"row": pl.Int64, "kept": pl.Int64})
ASSIGNMENTS = pl.DataFrame(
    {
        "sample_id": [1, 2, 3, 4],
        "component": [1, 2, 3, 4],
        "split": ["train", "eval", "eval", "train"],
        "content": [10, 20, 30, UNKNOWN],
        "links": [[7], [], [8, 9], []],
    },
    schema=SCHEMA,
)


def table(samples: dict[int, int]) -> pl.DataFrame:
    """Rows of samples, given with their contents."""
    return pl.DataFrame(
        {"row": range(len(samples)), "sample_id": list(samples), "content": list(samples.values())},
        schema={"row": pl.UInt32, "sample_id": ID_NUMBER, "content": ID_NUMBER},
    )


def corpus(
    samples: dict[int, int], dropped: pl.LazyFrame = NOTHING_DROPPED, sides: pl.LazyFrame = NO_SIDES
) -> tuple[dict[int, str], pl.DataFrame]:
    """The side or rule of samples, given with their contents, and what is remembered."""
    rows = table(samples).with_columns(
        source=pl.lit("s"),
        task=pl.lit("instr"),
        language=pl.lit("vi"),
        links=pl.lit([], dtype=LINKS),
        off_limits=pl.lit(False),
        dropped=pl.lit(False),
    )
    rows = rows.with_columns(earlier_places(rows["sample_id"], ASSIGNMENTS))
    predecessors = find_predecessors(rows, ASSIGNMENTS, dropped, sides)
    links = earlier_links(rows, ASSIGNMENTS, predecessors)
    labels = connect(rows.height, links, pl.DataFrame(schema={"a": pl.UInt64, "b": pl.UInt64}))
    names = name_components(rows["sample_id"], labels)
    rows = rows.with_columns(component=pl.Series(labels, dtype=pl.Int32))
    copies = copies_of_rows(rows, NO_COPIES, dropped)
    result = split_rows(rows, names, ASSIGNMENTS, predecessors, copies, SplitSettings(eval_share=0.5))
    joined = result.rows.join(rows, on="row")
    sides = dict(joined.select("sample_id", pl.coalesce("split", "rule")).iter_rows())
    return sides, result.assignments


def test_a_row_that_says_the_same_has_the_side_of_the_one_that_is_gone() -> None:
    sides, remembered = corpus({5: 10, 6: 20, 7: 70, 4: 40})
    assert (sides[5], sides[6], sides[4]) == ("train", "eval", "train")
    contents = dict(remembered.select("sample_id", "content").iter_rows())
    assert contents == {1: 10, 2: 20, 3: 30, 4: 40, 5: 10, 6: 20, 7: 70}


def test_a_row_that_was_kept_for_a_near_copy_has_its_side() -> None:
    dropped = pl.LazyFrame(
        {"sample_id": [2, 1, 9], "kept": [8, 7, 6]}, schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER}
    )
    sides, _ = corpus({8: 80, 7: 70}, dropped)
    assert sides == {8: "eval", 7: "train"}


def test_a_row_that_evaluates_retires_where_its_copy_has_trained() -> None:
    dropped = pl.LazyFrame(
        {"sample_id": [1], "kept": [3]}, schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER}
    )
    assert corpus({3: 30}, dropped)[0] == {3: "evaluation_retired"}
    assert corpus({3: 10})[0] == {3: "evaluation_retired"}


def test_a_row_with_one_side_of_a_row_that_is_gone_takes_after_it() -> None:
    """10 and 20 are the targets of samples 1 and 2; the query of both is 0."""
    sides = pl.LazyFrame({"row": [1, 0, 1], "hash": [10, 20, 70]}, schema=NO_SIDES.collect_schema())
    found, remembered = corpus({5: 20 * 2**64 + 50, 6: 70 * 2**64 + 10, 4: 40}, sides=sides)
    assert (found[5], found[6], found[4]) == ("eval", "train", "train")
    components = dict(remembered.select("sample_id", "component").iter_rows())
    assert (components[1], components[2]) == (components[6], components[5])


def test_a_row_with_a_picture_of_a_row_that_is_gone_takes_after_it() -> None:
    """Another question on the same picture, and an answer that is too short to link."""
    sides = pl.LazyFrame({"row": [0, 1], "hash": [7, 9]}, schema=NO_SIDES.collect_schema())
    found, _ = corpus({5: 50, 6: 60, 4: 40}, sides=sides)
    assert (found[5], found[6], found[4]) == ("train", "eval", "train")


def test_the_first_row_that_goes_on_takes_after_all_that_is_gone_of_its_component() -> None:
    together = ASSIGNMENTS.with_columns(component=pl.Series([1, 1, 1, 4], dtype=ID_NUMBER))
    for samples, expected in (
        ({5: 10}, [(0, 0), (0, 1), (0, 2)]),  # in the place of sample 1, with which 2 and 3 were linked
        ({3: 30, 5: 10}, [(0, 0), (0, 1), (1, 0)]),
    ):
        rows = table(samples)
        rows = rows.with_columns(earlier_places(rows["sample_id"], together))
        assert find_predecessors(rows, together, NOTHING_DROPPED, NO_SIDES).rows() == expected


def test_copies_stand_with_the_row_that_stays_in_the_end() -> None:
    across = pl.DataFrame({"row": [1], "kept": [0]}, schema=NO_COPIES.schema)
    curation = pl.LazyFrame(
        {"sample_id": [7, 8, 3, 9], "kept": [2, 3, 1, 6]}, schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER}
    )
    found = copies_of_rows(table({1: 10, 2: 20, 3: 30}), across, curation).sort("sample_id")
    # 7 was dropped for 2, itself a copy; 3 is a row of its own elsewhere, and 6 is none.
    assert found.rows() == [(0, 2, 20), (0, 7, UNKNOWN), (2, 8, UNKNOWN)]


def test_contents_are_as_different_as_their_sides() -> None:
    hashes = [0, 1, 2**63, 2**64 - 1]
    sides = [(query, target) for query in hashes for target in hashes]
    table = pl.DataFrame(sides, schema={"query_hash": pl.UInt64, "target_hash": pl.UInt64}, orient="row")
    found = table.select(content().alias("content"))["content"].to_list()
    assert found == [query * 2**64 + target for query, target in sides]
    assert len(np.unique(np.asarray(found, dtype=object))) == len(sides)
