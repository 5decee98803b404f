"""Which variants the ablation trains. The job itself runs in the end-to-end test."""

import pytest

from orchestration.ablation import pooling_variants
from vipolyqwen_core.config import Pooling
from vipolyqwen_core.recipes import demo


def test_the_recipes_own_pooling_comes_first_and_keeps_its_name() -> None:
    variants = list(pooling_variants(demo(), ["last", "attention", "mean"]))
    assert [pooling for pooling, _ in variants] == [Pooling.ATTENTION, Pooling.LAST, Pooling.MEAN]
    assert [recipe.name for _, recipe in variants] == ["demo", "demo-last", "demo-mean"]
    assert all(recipe.model.pooling is pooling for pooling, recipe in variants)


def test_nothing_but_pooling_and_name_differs() -> None:
    (_, own), (_, other) = pooling_variants(demo(), ["mean"])
    assert own == demo()
    assert other.batches == own.batches
    assert other.training == own.training


def test_an_unknown_pooling_is_named() -> None:
    with pytest.raises(ValueError, match="unknown pooling max: expected some of attention"):
        list(pooling_variants(demo(), ["max"]))
