"""The persisted split: ids as numbers in memory, spelled on disk, and nothing lost between."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.assignments import (
    LINKS,
    SCHEMA,
    UNKNOWN,
    earlier_places,
    links_of_row,
    read_assignments,
    split_id,
    write_assignments,
)
from quality.id_numbers import ID_NUMBER, id_number, spell
from quality.polars_tables import polars_schema
from vipolyqwen_core.contract import ASSIGNMENTS
from vipolyqwen_core.corpus.hashing import key_hash

numbers = st.integers(0, 2**128 - 1)


@given(st.lists(numbers))
def test_an_id_and_its_number_are_in_the_same_order(found: list[int]) -> None:
    spelled = [f"{number:032x}" for number in found]
    table = pl.DataFrame({"id": spelled}, schema={"id": pl.String}).select(
        "id", number=id_number(pl.col("id"))
    )
    assert table["number"].to_list() == found
    assert spell(table["number"]).to_list() == spelled
    assert table.sort("number")["id"].equals(table.sort("id")["id"])


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("quality.assignments.ROW_GROUP", 3)
    path = tmp_path / "assignments.parquet"
    assert read_assignments(path).equals(pl.DataFrame(schema=SCHEMA))
    assert split_id(path) is None
    split = ["train", "eval", "train", "train"]
    table = pl.DataFrame(
        {
            "sample_id": [0, 5, 2**64, 2**128 - 1],
            "component": [0, 5, 5, 7],
            "split": split,
            "content": [UNKNOWN, 1, 2**128 - 1, 2**64],
            "links": [[], [2**64 - 1], [3, 0], []],
        },
        schema=SCHEMA,
    )
    for held in (table, table.head(0)):
        write_assignments(held, path, "s1")
        assert read_assignments(path).equals(held)
        assert pl.read_parquet_schema(path) == polars_schema(ASSIGNMENTS)
        assert split_id(path) == "s1"
    write_assignments(table, path, "s1")
    assert pl.read_parquet(path)["sample_id"].to_list() == [f"{number:032x}" for number in table["sample_id"]]


def test_tables_from_before_contents_pictures_and_groups_were_kept_are_read(tmp_path: Path) -> None:
    path = tmp_path / "assignments.parquet"
    table = pl.DataFrame(
        {"sample_id": [5], "component": [3], "split": ["eval"], "content": [9], "links": [[1]]},
        schema=SCHEMA,
    )
    write_assignments(table, path, "s1")
    written = pl.read_parquet(path)
    written.rename({"links": "pictures"}).write_parquet(path)
    assert split_id(path) is None
    assert read_assignments(path).rows() == table.rows()
    written.drop("content", "links").write_parquet(path)
    assert read_assignments(path).rows() == [(5, 3, "eval", UNKNOWN, [])]


def test_a_table_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "assignments.parquet"
    write_assignments(pl.DataFrame([(5, 3, "eval", 9, [1])], schema=SCHEMA, orient="row"), path, "s1")
    pl.read_parquet(path).with_columns(kinds=1).write_parquet(path)
    with pytest.raises(ValueError, match=r"written by a newer version of the factory \(column 'kinds'\)"):
        read_assignments(path)


@pytest.mark.parametrize("damage", ["emptied", "cut", "another table", "no id"])
def test_a_damaged_table_is_named_with_what_hangs_on_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "assignments.parquet"
    write_assignments(pl.DataFrame([(5, 3, "eval", 9, [1])], schema=SCHEMA, orient="row"), path, "s1")
    written, table = path.read_bytes(), pl.read_parquet(path)
    match damage:
        case "emptied":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(written[: len(written) // 2])
        case "another table":
            table.drop("component").write_parquet(path)
        case _:
            table.with_columns(component=pl.lit("no hex digits")).write_parquet(path)
    with pytest.raises(ValueError, match=r"assignments\.parquet is damaged \(.*bring it back from a backup"):
        read_assignments(path)
    if damage in ("emptied", "cut"):
        with pytest.raises(ValueError, match=r"assignments\.parquet is damaged \("):
            split_id(path)


def test_pictures_of_both_sides_and_the_group_of_the_source_are_numbered() -> None:
    rows = pl.DataFrame(
        {
            "query_images": [["00000000000000ff" + 16 * "a", 32 * "f"], None, [], None],
            "target_images": [None, ["0" * 15 + "3" + 16 * "b"], [], None],
            "source": ["one", "one", "one", "two"],
            "group_id": [None, "g", "g", "g"],
        },
        schema_overrides={"query_images": pl.List(pl.String), "target_images": pl.List(pl.String)},
    )
    group, other = key_hash("one:g"), key_hash("two:g")
    found = rows.lazy().select(links=links_of_row()).collect(engine="streaming")
    assert found.schema == {"links": LINKS}
    assert found["links"].to_list() == [[255, 2**64 - 1], [3, group], [group], [other]]
    without = rows.with_columns(group_id=pl.lit(None, dtype=pl.String)).select(links=links_of_row())
    assert without["links"].to_list() == [[255, 2**64 - 1], [3], [], []]


def test_samples_are_found_at_their_places() -> None:
    assignments = pl.DataFrame({"sample_id": [3, 2**100, 9]}, schema={"sample_id": ID_NUMBER})
    samples = pl.Series([9, 9, 1, 2**100], dtype=ID_NUMBER)
    assert earlier_places(samples, assignments).to_list() == [2, 2, None, 1]
    assert earlier_places(samples, assignments.head(0)).to_list() == [None] * 4
