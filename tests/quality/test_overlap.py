"""Overlap with benchmarks: a shared run of 13 words links, 12 do not."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.overlap import overlap_links

HISTORY = pl.List(pl.Struct({"role": pl.String, "text": pl.String}))


def links(
    texts: list[tuple[str, str]],
    off_limits: list[str],
    targets: dict[int, str] | None = None,
    earlier: dict[int, str] | None = None,
) -> pl.DataFrame:
    rows = pl.LazyFrame(
        {
            "row": range(len(texts)),
            "source": [source for source, _ in texts],
            "query": [text for _, text in texts],
            "history": [
                [{"role": "user", "text": turn}] if (turn := (earlier or {}).get(row)) else None
                for row in range(len(texts))
            ],
            "target": [(targets or {}).get(row, "ngắn") for row in range(len(texts))],
        },
        schema={
            "row": pl.Int64,
            "source": pl.String,
            "query": pl.String,
            "history": HISTORY,
            "target": pl.String,
        },
    )
    return overlap_links(rows, off_limits)


def linked(*texts: tuple[str, str]) -> set[int]:
    found = links(list(texts), ["bench"])
    shared = found.filter(pl.col("row").n_unique().over("key") > 1)
    return set(shared["row"])


@pytest.mark.parametrize(
    "words",
    [
        [f"từ{i}" for i in range(40)],
        list("今天天气很好我们去公园散步看见了许多美丽的花朵和快乐的孩子们在草地上玩耍唱歌跳舞"),
    ],
)
def test_a_run_of_13_words_links_and_12_do_not(words: list[str]) -> None:
    space = " " if len(words[0]) > 1 else ""
    bench = ("bench", space.join(words[:20]))
    assert linked(bench, ("a", space.join(["x1"] * 3 + words[4:17] + ["x2"] * 30))) == {0, 1}
    assert linked(bench, ("a", space.join(["x1"] * 3 + words[4:16] + ["x2"] * 30))) == set()


def test_case_and_punctuation_do_not_hide_a_run() -> None:
    words = [f"word{i}" for i in range(15)]
    assert linked(("bench", " ".join(words)), ("a", ", ".join(words).upper() + "!")) == {0, 1}


def test_numbers_are_words() -> None:
    bench = ("bench", " ".join(map(str, range(100, 113))))
    assert linked(bench, ("a", "từ " + ", ".join(map(str, range(100, 113))))) == {0, 1}
    assert linked(bench, ("a", "từ " + ", ".join(map(str, range(101, 114))))) == set()


def test_runs_do_not_reach_from_one_text_into_the_next() -> None:
    words = [f"w{i}" for i in range(14)]
    assert linked(("bench", " ".join(words)), ("a", " ".join(words[:7])), ("b", " ".join(words[7:]))) == set()
    one, two = ["x"] * 13 + words[:7], words[7:] + ["y"] * 13
    assert linked(("bench", " ".join(words)), ("a", " ".join(one)), ("b", " ".join(two))) == set()


def test_a_run_in_a_target_links() -> None:
    words = " ".join(f"w{i}" for i in range(13))
    found = links([("bench", words), ("a", "câu hỏi")], ["bench"], targets={1: words})
    assert set(found["row"]) == {0, 1}


def test_a_run_in_an_earlier_turn_links() -> None:
    words = " ".join(f"w{i}" for i in range(13))
    found = links([("bench", words), ("a", "câu hỏi")], ["bench"], earlier={1: words})
    assert set(found["row"]) == {0, 1}


def test_without_benchmarks_nothing_is_computed() -> None:
    assert links([("a", "x " * 20)], []).is_empty()
    assert links([("bench", "kurz"), ("a", "x " * 20)], ["bench"]).is_empty()


def longest_run(one: list[str], two: list[str]) -> int:
    """Words of the longest run that stands in both."""
    best, lengths = 0, [0] * (len(two) + 1)
    for word in one:
        lengths = [0, *(lengths[place] + 1 if word == other else 0 for place, other in enumerate(two))]
        best = max(best, *lengths)
    return best


few_words = st.lists(st.sampled_from(["mot", "hai", "ba", "bon"]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(few_words, st.lists(few_words, min_size=1, max_size=5), st.data())
def test_a_row_is_linked_exactly_where_it_shares_13_words_in_a_row(bench, others, data) -> None:
    place, size = data.draw(st.integers(0, 20)), data.draw(st.integers(10, 16))
    rows = [*others, others[0] + bench[place : place + size]]
    expected = {number for number, words in enumerate(rows, 1) if longest_run(bench, words) >= 13}
    found = linked(("bench", " ".join(bench)), *(("a", " ".join(words)) for words in rows))
    with_bench = {number for number in found if number > 0 and longest_run(bench, rows[number - 1]) >= 13}
    assert with_bench == expected
    assert (0 in found) == bool(expected)
