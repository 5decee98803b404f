"""Duplicates: signatures against the true similarity, and which row stays."""

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.duplicates import (
    BAND_ROWS,
    NUM_BANDS,
    band_hashes,
    bucket_pairs,
    comparable,
    exact_duplicates,
    jaccard,
    near_duplicates,
    near_pairs,
    numbers_key,
    shingles,
)
from quality.pair_columns import whole_query


def true_jaccard(a: str, b: str) -> float:
    first = {a[i : i + 5] for i in range(len(a) - 4)}
    second = {b[i : i + 5] for i in range(len(b) - 4)}
    return len(first & second) / len(first | second)


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("aăâbcdđeêghikl", k=rng.randint(2, 7))) for _ in range(2000)]
    return [" ".join(rng.choices(words, k=rng.randint(8, 30))) for _ in range(count)]


def table(texts: list[str | None], blocks: list[int] | None = None) -> pl.LazyFrame:
    return pl.LazyFrame(
        {"row": range(len(texts)), "text": texts, "block": blocks or [0] * len(texts)},
        schema={"row": pl.Int64, "text": pl.String, "block": pl.UInt64},
    )


@given(st.lists(st.text(max_size=30), max_size=8))
def test_shingles_are_the_distinct_5_grams_of_each_text(texts: list[str]) -> None:
    hashes, offsets = shingles(texts)
    assert len(offsets) == len(texts) + 1
    for number, text in enumerate(texts):
        grams = [text[i : i + 5] for i in range(max(len(text) - 4, 0))]
        own = hashes[offsets[number] : offsets[number + 1]]
        assert len(own) == len(grams)
        assert len(set(own.tolist())) == len(set(grams))


near_texts = st.text(alphabet="ab cđ的", max_size=30)


@given(st.lists(st.tuples(near_texts, near_texts), max_size=8))
def test_jaccard_of_many_pairs_is_that_of_their_5_grams(pairs: list[tuple[str, str]]) -> None:
    found = jaccard([one for one, _ in pairs], [two for _, two in pairs])
    expected = [true_jaccard(one, two) if max(len(one), len(two)) >= 5 else 1.0 for one, two in pairs]
    assert found.tolist() == pytest.approx(expected)


def test_bands_are_the_same_in_any_batch() -> None:
    texts = sentences(50, seed=1)
    together = band_hashes(*shingles(texts), seed=3)
    assert together.shape == (50, NUM_BANDS)
    alone = np.concatenate([band_hashes(*shingles([text]), seed=3) for text in texts])
    assert (together == alone).all()
    assert (band_hashes(*shingles(texts), seed=4) != together).mean() > 0.99
    assert NUM_BANDS * BAND_ROWS <= 128


def test_near_pairs_are_those_above_the_threshold(tmp_path: Path) -> None:
    rng = random.Random(5)
    base = sentences(400, seed=2)
    changed = []
    for text in base[::4]:
        place = rng.randrange(len(text))
        changed.append(text[:place] + "#" * rng.randint(1, 4) + text[place + rng.randint(0, 3) :])
    texts = base + changed
    found = near_pairs(table(texts), ["text"], 0.85, 0, tmp_path / "bands")
    pairs = {(a, b) for a, b in found.select("a", "b").iter_rows()}
    expected = {(4 * i, 400 + i) for i in range(100) if true_jaccard(texts[4 * i], texts[400 + i]) >= 0.85}
    assert len(expected) > 50
    assert len(pairs & expected) >= 0.98 * len(expected)
    assert all(true_jaccard(texts[a], texts[b]) >= 0.85 for a, b in pairs)
    assert not (tmp_path / "bands").exists()


def test_rows_of_different_blocks_are_not_compared(tmp_path: Path) -> None:
    text = sentences(1, seed=3)[0]
    found = near_pairs(table([text, text, text], [1, 2, 1]), ["text"], 0.85, 0, tmp_path / "bands")
    assert found.select("a", "b").rows() == [(0, 2)]


def test_every_text_of_a_row_must_be_near(tmp_path: Path) -> None:
    one, two, three = sentences(3, seed=4)
    rows = pl.LazyFrame(
        {
            "row": [0, 1, 2, 3, 4],
            "block": pl.Series([0] * 5, dtype=pl.UInt64),
            "query": [one, one + "!", one, one, None],
            "target": [two, two, three, None, two],
        }
    )
    found = near_pairs(rows, ["query", "target"], 0.85, 0, tmp_path / "bands")
    assert found.select("a", "b").rows() == [(0, 1)]


@pytest.mark.parametrize("texts", [["query", "target"], ["target", "query"]])
def test_a_text_that_is_far_or_missing_parts_rows_however_near_the_long_ones_are(
    tmp_path: Path, texts: list[str]
) -> None:
    long = sentences(1, seed=4)[0] * 3
    short = ["mười hai con giáp", "ba mươi sáu phố", None, "mười hai con giáp!"]
    rows = pl.LazyFrame(
        {
            "row": range(4),
            "block": pl.Series([0] * 4, dtype=pl.UInt64),
            "query": short,
            "target": [long, long + "!", long + "?", long + "."],
        }
    )
    found = near_pairs(rows, texts, 0.85, 0, tmp_path / "bands")
    assert found.rows() == [(0, 3, pytest.approx(true_jaccard("mười hai con giáp", "mười hai con giáp!")))]


def test_equal_texts_are_near_at_any_threshold(tmp_path: Path) -> None:
    text = sentences(1, seed=3)[0]
    assert near_pairs(table([text, text]), ["text"], 1.0, 0, tmp_path / "bands").height == 1


def test_a_small_bucket_compares_all_its_rows_and_a_large_one_neighbours_and_the_first() -> None:
    met = pl.DataFrame({"band": [1] * 16 + [2] * 20, "row": range(36)})
    found = set(bucket_pairs(met).select("a", "b").iter_rows())
    small = {(a, b) for b in range(16) for a in range(b)}
    large = {(16, b) for b in range(17, 36)} | {(b - 1, b) for b in range(17, 36)}
    assert found == small | large


def test_texts_compare_without_case_and_line_breaks_and_with_their_earlier_turns() -> None:
    turns = [{"role": "user", "text": "Một"}, {"role": "assistant", "text": "Hai"}]
    rows = pl.DataFrame({"query": ["Ba\n\nBốn\nNăm"] * 2, "history": [turns, None]})
    assert rows.select(comparable(whole_query()))["query"].to_list() == ["một hai ba bốn năm", "ba bốn năm"]


def test_numbers_are_told_apart_where_their_digits_are_the_same() -> None:
    keys = pl.Series(["từ 1 đến 23", "1 và 23", "12 và 3", "1 và 2 và 3"]).to_frame("text")
    one, same, *others = keys.select(numbers_key(pl.col("text")))["text"]
    assert one == same
    assert len({one, *others}) == 3


def test_a_crowd_of_near_rows_costs_pairs_linear_in_its_size(tmp_path: Path) -> None:
    text = sentences(1, seed=6)[0] * 3
    crowd = [f"{text}{'abcdefgh'[i % 8]}{'ijklmnop'[i // 8 % 8]}{'qrstuvwx'[i // 64]}" for i in range(300)]
    found = near_pairs(table(crowd), ["text"], 0.85, 0, tmp_path / "bands")
    assert 299 <= found.height < 300 * 40
    ranks = pl.DataFrame({"row": range(300), "rank": range(300)})
    assert near_duplicates(found, ranks).height == 299


def test_the_row_of_the_best_rank_stays() -> None:
    rows = pl.LazyFrame({"row": [0, 1, 2, 3], "key": ["a", "b", "a", "a"], "rank": [2, 0, 1, 3]})
    assert exact_duplicates(rows, ["key"]).rows() == [(0, 2), (3, 2)]


def test_a_chain_does_not_remove_a_row_that_is_far_from_all_that_stay() -> None:
    pairs = pl.DataFrame({"a": [0, 1, 2], "b": [1, 2, 3], "similarity": [0.9, 0.9, 0.9]})
    ranks = pl.DataFrame({"row": [0, 1, 2, 3], "rank": [0, 1, 2, 3]})
    assert near_duplicates(pairs, ranks)["row"].to_list() == [1, 3]


@settings(max_examples=50)
@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] < p[1])), st.randoms())
def test_a_dropped_row_is_near_a_better_row_that_stays(
    edges: set[tuple[int, int]], rng: random.Random
) -> None:
    order = list(range(13))
    rng.shuffle(order)
    pairs = pl.DataFrame(
        [(a, b, 0.9) for a, b in sorted(edges)],
        schema={"a": pl.Int64, "b": pl.Int64, "similarity": pl.Float64},
        orient="row",
    )
    dropped = near_duplicates(pairs, pl.DataFrame({"row": range(13), "rank": order}))
    gone = set(dropped["row"])
    assert len(gone) == dropped.height
    for row, kept, _ in dropped.iter_rows():
        assert kept not in gone
        assert (min(row, kept), max(row, kept)) in edges
        assert order[kept] < order[row]
    stay = set(range(13)) - gone
    assert not any(a in stay and b in stay for a, b in edges)
