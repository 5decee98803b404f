"""The sticky split: over retrainings with a growing corpus nothing changes sides, nothing leaks."""

from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.assignments import LINKS, SCHEMA, UNKNOWN, earlier_places
from quality.components import connect, earlier_links, name_components
from quality.id_numbers import ID_NUMBER
from quality.predecessors import find_predecessors
from quality.split import SplitResult, check_components, split_rows
from vipolyqwen_core.config import SplitSettings

NO_ASSIGNMENTS = pl.DataFrame(schema=SCHEMA)
NOTHING_DROPPED = pl.LazyFrame(schema={"sample_id": ID_NUMBER, "kept": ID_NUMBER})
NO_SIDES = pl.LazyFrame(schema={"row": pl.Int64, "hash": pl.UInt64})
NO_COPIES = pl.DataFrame(schema={"row": pl.UInt32, "sample_id": ID_NUMBER, "content": ID_NUMBER})


def remembered(split: dict[int, str]) -> pl.DataFrame:
    """Earlier assignments of samples that were each alone in their component."""
    return pl.DataFrame(
        {
            "sample_id": list(split),
            "component": list(split),
            "split": list(split.values()),
            "content": [sample + 1000 for sample in split],
            "links": [[] for _ in split],
        },
        schema=SCHEMA,
    )


def corpus(
    links: list[int],
    off_limits: set[int] = frozenset(),
    assignments: pl.DataFrame = NO_ASSIGNMENTS,
    samples: Sequence[int] | None = None,
) -> tuple[pl.DataFrame, pl.Series]:
    """Row i is sample i, or `samples[i]`, and has the link `links[i]`; rows of one link, or of one earlier
    component, are a component. The second is the names of the components."""
    rows = pl.DataFrame(
        {"row": range(len(links)), "sample_id": range(len(links)) if samples is None else samples},
        schema={"row": pl.UInt32, "sample_id": ID_NUMBER},
    ).with_columns(
        content=pl.col("sample_id") + 1000,
        links=pl.lit([], dtype=LINKS),
        source=pl.lit("s"),
        task=pl.lit("instr"),
        language=pl.lit("vi"),
        off_limits=pl.col("row").is_in(sorted(off_limits)),
        dropped=pl.lit(False),
    )
    rows = rows.with_columns(earlier_places(rows["sample_id"], assignments))
    keys = pl.DataFrame({"row": range(len(links)), "key": links}, schema={"row": pl.Int64, "key": pl.UInt64})
    same = pl.DataFrame(schema={"a": pl.UInt64, "b": pl.UInt64})
    predecessors = find_predecessors(rows, assignments, NOTHING_DROPPED, NO_SIDES)
    labels = connect(len(links), pl.concat([keys, earlier_links(rows, assignments, predecessors)]), same)
    return rows.with_columns(component=pl.Series(labels)), name_components(rows["sample_id"], labels)


def decide(
    rows: pl.DataFrame,
    names: pl.Series,
    settings: SplitSettings,
    assignments: pl.DataFrame = NO_ASSIGNMENTS,
    copies: pl.DataFrame = NO_COPIES,
) -> SplitResult:
    predecessors = find_predecessors(rows, assignments, NOTHING_DROPPED, NO_SIDES)
    return split_rows(rows, names, assignments, predecessors, copies, settings)


def sides(result: SplitResult, rows: pl.DataFrame) -> dict[int, str]:
    joined = result.rows.join(rows, on="row")
    return dict(joined.select("sample_id", pl.coalesce("split", "rule")).iter_rows())


growing = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=25), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(growing, st.sampled_from([0.1, 0.3, 0.6]), st.integers(0, 5), st.integers(3, 40))
def test_three_retrainings(growth: list[list[int]], share: float, seed: int, most: int) -> None:
    split = SplitSettings(eval_share=share, seed=seed, max_eval_pairs=most, max_component_share=1.0)
    assignments, earlier, links = NO_ASSIGNMENTS, {}, []
    for new in growth:
        links += new
        rows, names = corpus(links, assignments=assignments)
        result = decide(rows, names, split, assignments)
        now = sides(result, rows)
        assert set(now) == set(rows["sample_id"])
        assert set(now.values()) <= {"train", "eval", "evaluation_retired", "evaluation_full"}
        of_component: dict[str, set[str]] = {}
        for sample, component in rows.select("sample_id", "component").iter_rows():
            of_component.setdefault(component, set()).add(now[sample])
        assert not any({"train", "eval"} <= found for found in of_component.values())
        for sample, side in earlier.items():
            allowed = {"train": {"train"}, "eval": {"eval", "evaluation_retired"}}
            assert now[sample] in allowed.get(side, {side, "eval", "evaluation_retired", "evaluation_full"})
        assert sum(side == "eval" for side in now.values()) <= most
        again = decide(*corpus(links, assignments=result.assignments), split, result.assignments)
        assert sides(again, rows) == now
        assert again.assignments.equals(result.assignments)
        assignments, earlier = result.assignments, now


@pytest.mark.parametrize("most", [12, 200])
def test_the_outcome_depends_neither_on_the_order_of_rows_nor_on_how_many_names_are_spelled_at_once(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some rows that join find room, and where new components of two languages do."""
    assignments = remembered(dict.fromkeys(range(0, 40, 4), "eval"))
    rows, names = corpus([i // 4 for i in range(400)], assignments=assignments)
    rows = rows.with_columns(
        language=pl.when(pl.col("row") % 2 == 0).then(pl.lit("vi")).otherwise(pl.lit("zh"))
    )
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=4)
    split = SplitSettings(eval_share=0.2, max_eval_pairs=most)
    result = decide(rows, names, split, assignments)
    assert result.rows["rule"].null_count() == (400 if most == 200 else 372)
    monkeypatch.setattr("quality.split.ORDERED_AT_ONCE", 7)
    again = decide(shuffled, names, split, assignments)
    assert again.rows.equals(result.rows)
    assert again.assignments.equals(result.assignments)


def test_the_share_holds_in_each_stratum_and_another_seed_chooses_others() -> None:
    rows, names = corpus(list(range(1000)))
    rows = rows.with_columns(language=pl.when(pl.col("row") < 900).then(pl.lit("vi")).otherwise(pl.lit("zh")))
    chosen = [
        set(
            decide(rows, names, SplitSettings(eval_share=0.1, seed=seed)).rows.filter(
                pl.col("split") == "eval"
            )["row"]
        )
        for seed in (0, 1)
    ]
    for rows_of_seed in chosen:
        assert 90 <= sum(row < 900 for row in rows_of_seed) <= 91
        assert 10 <= sum(row >= 900 for row in rows_of_seed) <= 11
    assert chosen[0] != chosen[1]


def evaluating(languages: list[int], split: SplitSettings) -> list[int]:
    """The languages of the rows that evaluate, of rows that stand alone, each in its language."""
    rows, names = corpus(list(range(len(languages))))
    rows = rows.with_columns(language=pl.Series([f"{number:03}" for number in languages]))
    result = decide(rows, names, split)
    return [languages[row] for row in result.rows.filter(pl.col("split") == "eval")["row"]]


def test_little_room_for_evaluation_is_shared_by_the_strata() -> None:
    chosen = evaluating([0] * 500 + [1] * 500, SplitSettings(eval_share=0.1, max_eval_pairs=20))
    assert 9 <= chosen.count(0) <= 11
    assert 9 <= chosen.count(1) <= 11


def test_strata_of_one_row_evaluate_as_often_as_the_share_says() -> None:
    assert 25 <= len(evaluating(list(range(400)), SplitSettings(eval_share=0.1))) <= 55


@pytest.mark.parametrize("seed", range(8))
def test_small_strata_together_take_no_more_than_there_is_room(seed: int) -> None:
    split = SplitSettings(eval_share=0.5, max_eval_pairs=3, seed=seed)
    assert len(evaluating(list(range(40)), split)) <= 3


def test_who_evaluates_stays_where_the_room_is_made_smaller_and_nobody_joins() -> None:
    assignments = remembered(dict.fromkeys(range(5), "eval"))
    rows, names = corpus([0, 1, 2, 3, *[4] * 5, 6, 7], assignments=assignments)
    result = decide(rows, names, SplitSettings(eval_share=0.9, max_eval_pairs=2), assignments)
    now = sides(result, rows)
    left_out = dict.fromkeys(range(5, 9), "evaluation_full")
    assert now == dict.fromkeys(range(5), "eval") | left_out | {9: "train", 10: "train"}


def test_a_copy_that_is_dropped_has_no_side_and_its_earlier_one_counts_for_those_linked_to_it() -> None:
    assignments = remembered({0: "eval"})
    rows, names = corpus([1, 1, 2], assignments=assignments)
    rows = rows.with_columns(dropped=pl.col("row") == 0)
    result = decide(rows, names, SplitSettings(eval_share=0.0), assignments)
    assert result.rows.select("split", "rule").rows() == [(None, None), ("eval", None), ("train", None)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=20), min_size=2, max_size=4), st.data())
def test_what_is_remembered_of_rows_that_come_and_go(steps: list[set[int]], data: st.DataObject) -> None:
    """Nobody is forgotten, sides stay, and a row that is gone goes on with those of its component."""
    assignments, split = NO_ASSIGNMENTS, SplitSettings(eval_share=0.4, max_component_share=1.0)
    for present in map(sorted, steps):
        links = data.draw(st.lists(st.integers(0, 15), min_size=len(present), max_size=len(present)))
        rows, names = corpus(links, assignments=assignments, samples=present)
        result = decide(rows, names, split, assignments)
        now = {sample: names[label] for sample, label in rows.select("sample_id", "component").iter_rows()}
        before = assignments.select("sample_id", "component", "split")
        renamed = {old: now[sample] for sample, old, _ in before.iter_rows() if sample in now}
        expected = {
            sample: (now.get(sample, renamed.get(old, old)), side, sample + 1000, [])
            for sample, old, side in before.iter_rows()
        }
        for sample, side in sides(result, rows).items():
            if side in ("train", "eval"):
                expected.setdefault(sample, (now[sample], side, sample + 1000, []))
        found = {sample: tuple(facts) for sample, *facts in result.assignments.iter_rows()}
        assert found == expected
        assert list(found) == sorted(found)
        assignments = result.assignments


def test_evaluation_rows_retire_when_their_component_meets_training() -> None:
    assignments = remembered({0: "train", 1: "eval"})
    rows, names = corpus([1, 2, 1], assignments=assignments)
    bridged = rows.with_columns(component=pl.lit(0, dtype=pl.Int32))
    result = decide(bridged, names, SplitSettings(), assignments)
    assert sides(result, bridged) == {0: "train", 1: "evaluation_retired", 2: "train"}
    found = dict(result.assignments.select("sample_id", "split").iter_rows())
    assert found == {0: "train", 1: "eval", 2: "train"}
    # The bridge is gone from the corpus: what was linked once stays linked.
    later, names = corpus([1, 2], assignments=result.assignments)
    again = decide(later, names, SplitSettings(), result.assignments)
    assert sides(again, later)[1] == "evaluation_retired"
    assert again.assignments.equals(result.assignments)
    # All that trained is gone: what was retired for it does not come back, nor does anything new beside it.
    last, names = corpus([2, 2], assignments=again.assignments, samples=[1, 3])
    assert sides(decide(last, names, SplitSettings(), again.assignments), last) == {
        1: "evaluation_retired",
        3: "train",
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=2), min_size=4, max_size=6), st.data())
def test_what_was_ever_linked_to_a_row_that_trained_never_evaluates(
    steps: list[set[int]], data: st.DataObject
) -> None:
    assignments, split = NO_ASSIGNMENTS, SplitSettings(eval_share=0.5, max_component_share=1.0)
    linked = {sample: {sample} for sample in range(6)}
    trained: set[int] = set()
    for present in map(sorted, steps):
        links = data.draw(st.lists(st.integers(0, 9), min_size=len(present), max_size=len(present)))
        rows, names = corpus(links, assignments=assignments, samples=present)
        result = decide(rows, names, split, assignments)
        for part in rows.group_by("component").agg("sample_id")["sample_id"]:
            together = set().union(*(linked[sample] for sample in part))
            linked.update(dict.fromkeys(together, together))
        now = sides(result, rows)
        trained |= {sample for sample, side in now.items() if side == "train"}
        for sample, side in now.items():
            assert side != "eval" or not linked[sample] & trained
        assignments = result.assignments


def test_a_copy_is_remembered_with_the_side_of_the_row_that_stays() -> None:
    rows, names = corpus([1, 2, 3, 4, 5])
    copies = pl.DataFrame(
        {"row": [0, 1, 2, 3, 3, 0], "sample_id": [10, 11, 12, 12, 3, 4], "content": [0, 7, 0, 0, 0, 0]},
        schema=NO_COPIES.schema,
    )
    assignments = remembered({0: "train", 1: "eval", 2: "eval", 3: "train"})
    rows = rows.with_columns(earlier_places(rows["sample_id"], assignments))
    result = decide(rows, names, SplitSettings(), assignments, copies)
    found = {sample: tuple(facts) for sample, *facts in result.assignments.iter_rows()}
    assert [found[sample] for sample in (10, 11, 12)] == [
        (0, "train", 0, []), (1, "eval", 7, []), (3, "train", 0, [])
    ]  # fmt: skip
    assert len(found) == result.assignments.height == 8


def test_a_copy_of_a_row_that_is_retired_does_not_evaluate_later() -> None:
    assignments = remembered({0: "train", 1: "eval"})
    rows, names = corpus([1, 1], assignments=assignments)
    copies = pl.DataFrame({"row": [1], "sample_id": [5], "content": [0]}, schema=NO_COPIES.schema)
    result = decide(rows, names, SplitSettings(), assignments, copies)
    assert sides(result, rows) == {0: "train", 1: "evaluation_retired"}
    alone, names = corpus([2], assignments=result.assignments, samples=[5])
    everything = SplitSettings(eval_share=0.99)
    assert sides(decide(alone, names, everything, result.assignments), alone) == {5: "evaluation_retired"}


def test_what_a_row_says_and_shows_is_remembered_where_it_was_not_kept() -> None:
    assignments = remembered({0: "train"}).with_columns(content=pl.lit(UNKNOWN, dtype=ID_NUMBER))
    rows, names = corpus([1, 2], assignments=assignments)
    rows = rows.with_columns(links=pl.Series([[7], [8, 9]], dtype=LINKS))
    result = decide(rows, names, SplitSettings(), assignments)
    assert result.assignments["content"].to_list() == [1000, 1001]
    assert result.assignments["links"].to_list() == [[7], [8, 9]]


def test_rows_of_a_benchmark_and_rows_linked_to_it_never_train() -> None:
    """Whether or not the row of the benchmark is dropped as a copy."""
    assignments = remembered({1: "train", 3: "eval"})
    rows, names = corpus([1, 1, 2, 2, 3, 4, 4], off_limits={0, 2, 5})
    rows = rows.with_columns(earlier_places(rows["sample_id"], assignments), dropped=pl.col("row") == 5)
    result = decide(rows, names, SplitSettings(eval_share=0.0), assignments)
    assert sides(result, rows) == {
        0: "off_limits",
        1: "linked_to_off_limits",
        2: "off_limits",
        3: "eval",
        4: "train",
        5: None,
        6: "linked_to_off_limits",
    }


def test_a_component_of_too_many_rows_is_refused_with_its_sources() -> None:
    def cause(members: pl.Series) -> str:
        assert members.to_list() == list(range(120))
        return "they share a logo"

    with pytest.raises(ValueError, match=r"120 of 1019 rows .*max_component_share.*share a logo.*s 120"):
        check_components(*corpus([0] * 120 + list(range(1, 900))), SplitSettings(), cause)
    rows, names = corpus([0] * 40 + list(range(1, 900)))
    found = check_components(rows, names, SplitSettings(), cause)
    assert (found["component"], found["rows"]) == (f"{0:032x}", 40)
    assert (
        check_components(*corpus([0] * 100), SplitSettings(), cause)["share"] == 1.0
    )  # small enough for any corpus
    assert check_components(rows.head(0), names, SplitSettings(), cause)["rows"] == 0
