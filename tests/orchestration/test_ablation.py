"""Which variants the ablation trains. The job itself runs in the end-to-end test."""

from dataclasses import replace

import dagster as dg
import pytest

from orchestration.ablation import pooling_ablation, pooling_variants
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


def test_a_pooling_that_is_not_learned_has_no_term_for_its_weights() -> None:
    recipe = replace(demo(), objective=replace(demo().objective, pooling_entropy_weight=0.1))
    weights = {
        pooling: variant.objective.pooling_entropy_weight
        for pooling, variant in pooling_variants(recipe, list(Pooling))
    }
    assert weights == {pooling: 0.1 * ("attention" in pooling) for pooling in Pooling}


def test_an_unknown_pooling_is_refused_before_the_run_is_launched() -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"poolings\[1\] not in enum type Pooling got max"):
        dg.validate_run_config(pooling_ablation, configured("mean", "max"))


def test_all_poolings_are_compared_where_none_is_named() -> None:
    assert dg.validate_run_config(pooling_ablation, configured("mean"))
    config = dg.validate_run_config(pooling_ablation)["ops"]["compare_poolings"]["config"]
    assert config == {"poolings": list(Pooling)}


def configured(*poolings: str) -> dict[str, object]:
    """Run configuration of the job, as a person writes it in the UI."""
    return {"ops": {"compare_poolings": {"config": {"poolings": list(poolings)}}}}
