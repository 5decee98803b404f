"""What the gallery shows, and where a picture is bright."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.small_training_set import picture
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation.baselines import Bm25, words
from vipolyqwen_core.evaluation.gallery import choose, heat_maps, picture_weights
from vipolyqwen_core.processing.processor import Item
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder


@given(ranks=st.lists(st.sampled_from([1.0, 0.5, 0.0]), max_size=12), count=st.integers(0, 8))
def test_answered_and_missed_queries_are_shown_in_equal_parts(ranks: list[float], count: int) -> None:
    chosen = choose(np.array(ranks), count, seed=0)
    assert len(chosen) == len(set(chosen)) == min(count, len(ranks))
    found = [place for place in chosen if ranks[place] == 1]
    missed = len(chosen) - len(found)
    if ranks.count(1.0) >= count and len(ranks) - ranks.count(1.0) >= count:
        assert len(found) - missed in (0, 1)


def test_weights_lie_on_the_tokens_of_each_picture(tiny_model_dir: Path) -> None:
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    wide, tall = picture(1).resize((112, 56)), picture(2).resize((28, 84))
    item = Item("<image>and<image>?", (wide, tall), prefix=Task.VQA_MULTI)
    first, second = picture_weights(embedder, item)
    assert (first.shape, second.shape) == ((2, 4), (3, 1))
    assert 0 < first.sum() + second.sum() < 1  # the rest lies on the text
    assert len(heat_maps(embedder, item)) == 2
    assert heat_maps(embedder, Item("no picture")) == []
    embedder.processor.settings = replace(embedder.processor.settings, max_tokens=8)  # of an older recipe
    assert len(picture_weights(embedder, item)) == 2


def test_words_are_letters_and_digits_and_single_characters_of_east_asian_scripts() -> None:
    assert words("Tổng tiền: 12.500 đ!") == ["tổng", "tiền", "12", "500", "đ"]
    assert words("总额是20元") == ["总", "额", "是", "20", "元"]
    assert words("のカ총액") == ["の", "カ", "총", "액"]


def test_bm25_does_not_take_a_placeholder_for_the_word_image() -> None:
    targets = ["a red bus", "the image shows a cat", "an image"]
    with_picture, without = Bm25(targets).similarity(["<image>which bus?<image>", "which bus?"])
    assert with_picture.tolist() == without.tolist()
    assert words("left<image>right") == ["left", "right"]


def test_bm25_prefers_rare_shared_words_and_gives_nothing_for_none() -> None:
    scores = Bm25(["the cat", "the rare fish", "the dog"]).similarity(["the rare bird", "zebra", ""])
    assert scores[0].argmax() == 1
    assert scores[0, 1] > scores[0, 0] > 0
    assert not scores[1:].any()
    (mixed,) = Bm25(["", "the cat"]).similarity(["cat"])  # the target of a picture alone has no words
    assert mixed[0] == 0 < mixed[1]


def test_bm25_of_pairs_is_that_of_each_query_with_the_target_beside_it() -> None:
    targets = ["the cat", "the rare fish", "the dog", "", "the old dog"]
    queries = ["a dog", "a rare, rare fish", "the dog", "the cat", "zebra"]
    bm25 = Bm25(targets)
    of_pairs = bm25.similarity_of_pairs(queries)
    assert of_pairs == pytest.approx(bm25.similarity(queries).diagonal())
    assert (of_pairs > 0).tolist() == [False, True, True, False, False]
    assert of_pairs.dtype == np.float32
    assert bm25.similarity_of_pairs(["zebra"] * 5).tolist() == [0] * 5


@pytest.mark.parametrize("targets", [["", ""], ["!", "?"]])
def test_bm25_of_targets_without_words_is_zero(targets: list[str]) -> None:
    assert not Bm25(targets).similarity(["a"]).any()
    assert Bm25(targets).similarity_of_pairs(["a", "b"]).tolist() == [0, 0]
