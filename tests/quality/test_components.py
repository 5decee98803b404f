"""Components: what is linked, by whatever way, is one; and its name does not depend on the order of rows."""

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.components import connect, name_components
from quality.id_numbers import ID_NUMBER

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
