"""Components: what is linked, by whatever way, is one; and its name does not depend on the order of rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.components import (
    connect,
    copy_links,
    earlier_links,
    link_keys,
    linking_hashes,
    most_shared,
    name_components,
    near_sides,
)
from quality.id_numbers import ID_NUMBER
from quality.intake import INTAKE_SCHEMA
from quality.predecessors import SCHEMA
from tests.quality.conftest import sentence

PLACED = ("row", "earlier")
LONG = "ế" * 32  # characters count, not bytes
A, B = "a" * 32, "b" * 32  # ids of pictures
keys = st.integers(0, 12)
NUM_ROWS = 15


def linked_by_hand(num_rows: int, links: list[tuple[int, int]], same: list[tuple[int, int]]) -> list[int]:
    """Components as numbers in the order of their first rows: colours spread until nothing changes."""
    things = [("row", row) for row in range(num_rows)]
    colours = {thing: number for number, thing in enumerate(things)}
    edges = [(("row", row), ("key", key)) for row, key in links]
    edges += [(("key", a), ("key", b)) for a, b in same]
    for edge in edges:
        for end in edge:
            colours.setdefault(end, len(colours))
    changed = True
    while changed:
        changed = False
        for one, two in edges:
            if colours[one] != colours[two]:
                colours[one] = colours[two] = min(colours[one], colours[two])
                changed = True
    of_rows = [colours[thing] for thing in things]
    order = sorted(set(of_rows), key=of_rows.index)
    return [order.index(colour) for colour in of_rows]


def pairs(*rows: dict) -> pl.LazyFrame:
    """Rows of a pair: what is not given is short, without pictures, and without a group."""
    empty = {"source": "s", "query": "q", "target": "t", "query_images": [], "target_images": []}
    return pl.LazyFrame([{**empty, **row} for row in rows], schema=INTAKE_SCHEMA).with_columns(
        row=pl.int_range(pl.len(), dtype=pl.Int64)
    )


def are_linked(*rows: dict) -> bool:
    """Whether two rows have a key in common."""
    links = link_keys(pairs(*rows), min_linking_chars=32).collect()
    one, two = (set(links.filter(pl.col("row") == row)["key"]) for row in (0, 1))
    return bool(one & two)


TURNS = [{"role": "user", "text": LONG}, {"role": "assistant", "text": "ừ"}]
SHORT_TURNS = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "t"}]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"query_images": [A]}, {"target_images": [B, A]}),
        ({"group_id": "g"}, {"group_id": "g"}),
        ({"query": LONG}, {"target": LONG.upper()}),
        ({"target": LONG, "query_images": [A]}, {"target": LONG, "query_images": [B]}),
        ({"query": "và", "history": TURNS}, {"query": "và", "history": TURNS}),
        ({"file": "f", "line": 7}, {"file": "f", "line": 7, "history": SHORT_TURNS}),
    ],
)
def test_a_picture_a_group_and_a_long_text_link(one: dict, two: dict) -> None:
    assert are_linked(one, two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {}),
        ({"query": LONG[1:]}, {"query": LONG[1:]}),
        ({"query": LONG, "query_images": [A]}, {"query": LONG, "query_images": [B]}),
        ({"target": LONG, "target_images": [A]}, {"target": LONG, "target_images": [B]}),
        ({"query": LONG}, {"query": LONG, "history": TURNS}),
        ({"file": "f", "line": 7}, {"file": "f", "line": 7}),  # of an adapter, which may mean nothing by it
        *(
            (
                {"file": "f", "line": 7, "history": SHORT_TURNS} | one,
                {"file": "f", "line": 7, "history": SHORT_TURNS},
            )
            for one in ({"line": 8}, {"file": "g"}, {"source": "other"})
        ),
        ({"group_id": "g"}, {"group_id": "g", "source": "other"}),
    ],
)
def test_what_is_short_or_stands_beside_a_picture_or_in_another_source_does_not(one: dict, two: dict) -> None:
    assert not are_linked(one, two)


def test_pictures_and_sides_that_link_by_themselves_have_hashes() -> None:
    rows = pairs(
        {"query": "và", "history": TURNS, "query_hash": 1, "target_hash": 2},
        {"target": LONG, "query_hash": 3, "target_hash": 4},
        {"query_images": ["0" * 15 + "9" + "a" * 16], "query_hash": 5, "target_hash": 6},
        {"query": LONG[1:], "query_hash": 7, "target_hash": 8},
    )
    assert sorted(linking_hashes(rows, 32).collect().rows()) == [(0, 1), (1, 4), (2, 5), (2, 9)]


def test_what_most_rows_have_in_common_counts_rows_and_equal_counts_go_by_the_alphabet() -> None:
    both = {"query_images": [A], "target_images": [A]}
    rows = [{**both, "group_id": "g"}, {**both, "group_id": "h"}, {"group_id": "h"}, {"group_id": "h"}]
    assert most_shared(pairs(*rows), 32) == ("group_id", "h", 3)
    assert most_shared(pairs(*rows[:3]), 32) == ("group_id", "h", 2)
    assert most_shared(pairs({"target": LONG}, {"query": LONG}, {}), 32) == ("text", LONG, 2)
    assert most_shared(pairs({"query": LONG[1:]}), 32) is None


def test_near_texts_are_the_same_key_on_whichever_sides_and_how_often_they_stand(tmp_path: Path) -> None:
    text = sentence(1, 30)
    rows = pairs({"query": text, "target": sentence(2, 30)}, {"target": text}, {"target": text + "!"})
    found = near_sides(rows, 32, 0.85, 0, tmp_path / "bands")
    links = link_keys(rows, 32).collect()
    (key,), (near,) = ({*links.filter(pl.col("row") == row)["key"]} for row in (1, 2))
    assert [{*pair} for pair in found.iter_rows()] == [{key, near}]


def test_a_row_goes_on_with_the_earlier_component_of_its_predecessor() -> None:
    rows = pl.DataFrame({"row": [0, 1, 2], "earlier": [None, 1, 2]}, schema=dict.fromkeys(PLACED, pl.UInt32))
    assignments = pl.DataFrame({"component": [7, 7, 8]}, schema={"component": ID_NUMBER})
    predecessors = pl.DataFrame({"row": [0], "place": [0]}, schema=SCHEMA)
    links = earlier_links(rows, assignments, predecessors)
    same = pl.DataFrame(schema={"a": pl.UInt64, "b": pl.UInt64})
    assert connect(3, links, same).tolist() == [0, 0, 1]


def test_a_dropped_copy_is_linked_to_the_row_that_stays() -> None:
    links = copy_links(pl.DataFrame({"row": [1, 2, 5], "kept": [0, 0, 4]}))
    same = pl.DataFrame(schema={"a": pl.UInt64, "b": pl.UInt64})
    assert connect(6, links, same).tolist() == [0, 0, 0, 1, 2, 2]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), keys), max_size=25),
    st.lists(st.tuples(keys, keys), max_size=6),
)
def test_rows_are_connected_by_any_way_over_keys(
    links: list[tuple[int, int]], same: list[tuple[int, int]]
) -> None:
    """Also over keys that no row has: a picture of a rejected row may look like two others."""
    labels = connect(
        NUM_ROWS,
        pl.DataFrame(links, schema={"row": pl.Int64, "key": pl.UInt64}, orient="row"),
        pl.DataFrame(same, schema={"a": pl.UInt64, "b": pl.UInt64}, orient="row"),
    )
    assert labels.tolist() == linked_by_hand(NUM_ROWS, links, same)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(0, 2**128 - 1), max_size=12, unique=True))
def test_a_component_has_the_name_of_its_smallest_sample(data: st.DataObject, samples: list[int]) -> None:
    found = data.draw(st.lists(st.integers(0, 5), min_size=len(samples), max_size=len(samples)))
    numbers = sorted(set(found))
    labels = np.array([numbers.index(number) for number in found], dtype=np.int32)
    names = name_components(pl.Series("sample_id", samples, dtype=ID_NUMBER), labels)
    assert names.to_list() == [
        min(sample for sample, label in zip(samples, labels, strict=True) if label == number)
        for number in range(len(numbers))
    ]


def test_a_dialogue_that_links_is_named_with_all_its_pairs() -> None:
    place = {"file": "f", "line": 7}
    rows = pairs(place, {**place, "history": SHORT_TURNS}, {**place, "source": "other"})
    assert most_shared(rows, min_linking_chars=32) == ("dialogue", "s: f:7", 2)
