"""The verdict on a model, and the decision on its alias, from numbers alone."""

from dataclasses import replace

import pytest

from tests.core.small_evaluation import GAIN, evaluation, pool
from vipolyqwen_core.config import RegistrySettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.metrics import PRIMARY
from vipolyqwen_core.evaluation.promotion import decide
from vipolyqwen_core.evaluation.results import (
    Evaluation,
    PoolResult,
    SimilarityResult,
    judge_pools,
    read_evaluation,
)

NOTHING = Interval(0.01, -0.02, 0.04)


def test_a_model_that_fulfils_every_condition_has_learned() -> None:
    verdict = judge_pools((pool(), pool(Task.INSTR, swapped=None)), enough=True)
    assert verdict.learned
    assert len(verdict.facts) == 4  # two gains, one swap, recall


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (pool(gain=NOTHING), "gain +0.010"),
        (pool(swapped=0.31), "is 0.310 when pictures are swapped"),
        (pool(recall=0.05), "2.5 times chance"),
    ],
)
def test_each_condition_can_fail_alone(changed: PoolResult, expected: str) -> None:
    verdict = judge_pools((changed,), enough=True)
    assert not verdict.learned
    assert len(verdict.failures) == 1
    assert expected in verdict.failures[0]


@pytest.mark.parametrize(
    ("at_the_limit", "beyond"),
    [
        (pool(gain=Interval(0.2, 0.001, 0.3)), pool(gain=Interval(0.2, 0.0, 0.3))),
        (pool(swapped=0.3), pool(swapped=0.301)),
        (pool(recall=0.1), pool(recall=0.099)),
    ],
)
def test_a_condition_holds_up_to_its_limit(at_the_limit: PoolResult, beyond: PoolResult) -> None:
    assert judge_pools((at_the_limit,), enough=True).learned
    assert not judge_pools((beyond,), enough=True).learned


def test_a_choice_is_not_asked_for_a_gain_nor_weighs_in_the_mean() -> None:
    choice = pool(Task.VQA_MULTI, gain=NOTHING, recall=0.5, is_choice=True)
    verdict = judge_pools((pool(recall=0.11), choice), enough=True)
    assert verdict.learned


def test_pools_that_are_too_small_prove_nothing() -> None:
    assert not judge_pools((pool(),), enough=False).learned


def test_the_first_version_must_beat_the_untrained_model() -> None:
    assert decide(evaluation(pool()), RegistrySettings(min_gain=0.15)).alias == "champion"
    decision = decide(evaluation(pool(), over_untrained=NOTHING), RegistrySettings())
    assert decision.alias == "challenger"
    assert "over the untrained model +0.0100" in decision.reasons[0]


def test_a_champion_is_replaced_only_by_a_sure_gain() -> None:
    settings = RegistrySettings(min_gain=0.05)
    sure, unsure = Interval(0.1, 0.06, 0.2), Interval(0.1, 0.05, 0.2)
    assert decide(evaluation(pool(champion=0.5), over_champion=sure), settings).promoted
    assert not decide(evaluation(pool(champion=0.5), over_champion=unsure), settings).promoted


def test_a_champion_of_another_split_is_not_replaced_without_a_person() -> None:
    compared = evaluation(pool(champion=0.5), over_champion=GAIN)
    assert decide(compared, RegistrySettings()).promoted
    decision = decide(replace(compared, champion_is_apart=True), RegistrySettings())
    assert not decision.promoted
    assert "trained under another split" in decision.reasons[-1]


def test_a_task_that_falls_too_far_keeps_the_champion() -> None:
    fallen = evaluation(
        pool(champion=0.3),
        pool(Task.INSTR, trained=0.4, champion=0.5, swapped=None),
        over_champion=GAIN,
    )
    decision = decide(fallen, RegistrySettings(max_task_loss=0.05))
    assert not decision.promoted
    assert "instr: mrr@10 falls from 0.5000 to 0.4000" in decision.reasons[-1]
    assert decide(fallen, RegistrySettings(max_task_loss=0.11)).promoted
    as_far_as_it_may = evaluation(pool(trained=0.25, champion=0.5), over_champion=GAIN)
    assert decide(as_far_as_it_may, RegistrySettings(max_task_loss=0.25)).promoted


def test_a_task_is_judged_over_its_languages_together() -> None:
    better, worse = pool(trained=0.7, champion=0.6), pool(trained=0.5, champion=0.58)
    worse = replace(worse, gain_over_champion=Interval(-0.08, -0.1, -0.06))
    assert decide(evaluation(better, worse, over_champion=GAIN), RegistrySettings()).promoted


def test_the_accuracy_of_a_choice_may_not_fall_either() -> None:
    choice = pool(Task.VQA_MULTI, trained=0.9, recall=0.6, champion=0.8, is_choice=True)
    decision = decide(evaluation(pool(champion=0.3), choice, over_champion=GAIN), RegistrySettings())
    assert not decision.promoted
    assert "vqa_multi: accuracy falls from 0.8000 to 0.6000" in decision.reasons[-1]


def test_a_choice_does_not_hide_behind_the_ranked_pools_of_its_task() -> None:
    ranked = pool(Task.VQA_MULTI, champion=0.3)
    choice = pool(Task.VQA_MULTI, trained=0.9, recall=0.6, champion=0.8, is_choice=True)
    decision = decide(evaluation(ranked, choice, over_champion=GAIN), RegistrySettings())
    assert not decision.promoted
    assert "vqa_multi: accuracy falls from 0.8000 to 0.6000" in decision.reasons[-1]


@pytest.mark.parametrize("is_choice", [False, True])
def test_a_task_with_only_small_pools_does_not_fall_unseen(is_choice: bool) -> None:
    worse = pool(Task.VQA_MULTI, trained=0.6, recall=0.6, champion=0.8, is_choice=is_choice)
    unsure = Interval(-0.2, -0.3, 0.0)
    small = replace(worse, is_large=False, counts=False, num_pairs=40, gain_over_champion=unsure)
    decision = decide(evaluation(pool(champion=0.3), small, over_champion=GAIN), RegistrySettings())
    assert not decision.promoted
    assert "vqa_multi" in decision.reasons[-1]
    assert "falls from 0.8000 to 0.6000" in decision.reasons[-1]
    (few,) = decision.not_judged
    assert "vqa_multi" in few
    assert "40 pairs only" in few
    better = replace(small, scores=small.scores | {results.CHAMPION: {PRIMARY: 0.5, "recall@1": 0.5}})
    decision = decide(evaluation(pool(champion=0.3), better, over_champion=GAIN), RegistrySettings())
    assert decision.promoted
    assert decision.not_judged == (few,)


def test_a_first_version_says_which_tasks_are_thin() -> None:
    few = replace(pool(Task.VQA_MULTI, is_choice=True), is_large=False, num_pairs=12)
    decision = decide(evaluation(pool(), few, few), RegistrySettings())
    assert decision.promoted
    assert decision.not_judged == ("vqa_multi: accuracy rests on 24 pairs only, no pool is large enough",)
    assert decide(evaluation(pool(), few, replace(few, is_large=True)), RegistrySettings()).not_judged == ()


def test_small_pools_do_not_weigh_where_a_task_has_a_large_one() -> None:
    small = replace(pool(trained=0.1, champion=0.9), is_large=False, counts=False)
    risen = replace(small, scores=pool(trained=0.9, champion=0.1).scores, gain_over_champion=GAIN)
    for other in (small, risen):
        decision = decide(evaluation(pool(champion=0.3), other, over_champion=GAIN), RegistrySettings())
        assert decision.promoted
        assert decision.not_judged == ()


def small_chinese_pool(over_champion: Interval, num_components: int = 100) -> Evaluation:
    """A sure gain over a large Vietnamese pool, and a small Chinese one of the same task that fell to 0."""
    small = replace(
        pool(trained=0.0, champion=0.9),
        language="zh",
        num_pairs=149,
        num_components=num_components,
        is_large=False,
        counts=False,
        gain_over_champion=over_champion,
    )
    return evaluation(pool(champion=0.3), small, over_champion=GAIN)


@pytest.mark.parametrize("num_components", [10, 100])
def test_a_small_pool_that_surely_fell_keeps_the_champion(num_components: int) -> None:
    fallen = small_chinese_pool(Interval(-0.9, -0.95, -0.84), num_components)
    decision = decide(fallen, RegistrySettings())
    assert not decision.promoted
    assert decision.reasons[1:] == (
        "ocr/zh: mrr@10 falls from 0.9000 to 0.0000 on 149 pairs, surely by more than 0.0500",
    )


@pytest.mark.parametrize(
    ("over_champion", "num_components"), [(Interval(-0.9, -0.95, -0.04), 100), (Interval(-0.9, -1, -0.8), 9)]
)
def test_a_small_pool_that_may_have_fallen_by_chance_is_named(
    over_champion: Interval, num_components: int
) -> None:
    decision = decide(small_chinese_pool(over_champion, num_components), RegistrySettings())
    assert decision.promoted
    (sentence,) = decision.not_judged
    assert sentence == "ocr/zh: mrr@10 falls from 0.9000 to 0.0000 on 149 pairs, too few to be sure"
    assert decide(small_chinese_pool(over_champion), RegistrySettings(max_task_loss=0.9)).not_judged == ()


def scored(trained: float | None, champion: float, is_large: bool = True) -> Evaluation:
    scores = {
        results.TRAINED: {} if trained is None else {"spearman": trained, "pearson": trained},
        results.CHAMPION: {"spearman": champion, "pearson": champion},
    }
    similarity = SimilarityResult("vi", 300 if is_large else 30, is_large, scores)
    return replace(evaluation(pool(champion=0.3), over_champion=GAIN), similarities=(similarity,))


@pytest.mark.parametrize("trained", [-0.3, 0.7, None])
def test_scored_pairs_that_are_followed_worse_keep_the_champion(trained: float | None) -> None:
    decision = decide(scored(trained, 0.86), RegistrySettings())
    assert not decision.promoted
    assert "scored pairs/vi: Spearman falls from 0.8600 to" in decision.reasons[-1]
    few = decide(scored(trained, 0.86, is_large=False), RegistrySettings())
    assert few.promoted
    assert "on 30 pairs, too few to be sure" in few.not_judged[0]


def test_a_language_that_the_champion_has_no_number_for_hides_no_other() -> None:
    fallen = scored(0.7, 0.86)
    scores = {results.TRAINED: {"spearman": 0.5, "pearson": 0.5}, results.CHAMPION: {}}
    unknown = SimilarityResult("en", 300, True, scores)
    decision = decide(replace(fallen, similarities=(unknown, *fallen.similarities)), RegistrySettings())
    assert not decision.promoted


def test_scored_pairs_may_be_followed_a_little_worse() -> None:
    assert decide(scored(0.8, 0.86), RegistrySettings()).promoted
    assert not decide(scored(0.8, 0.86), RegistrySettings(max_similarity_loss=0.05)).promoted
    assert decide(scored(0.5, 0.75), RegistrySettings(max_similarity_loss=0.25)).promoted


@pytest.mark.parametrize("over_champion", [GAIN, None])
def test_a_task_whose_pairs_make_no_pool_is_named(over_champion: Interval | None) -> None:
    without_pool = replace(
        evaluation(pool(champion=0.3), over_champion=over_champion),
        rows_by_task={Task.TEXT_PAIR: 300, Task.OCR: 200},
    )
    assert decide(without_pool, RegistrySettings()).not_judged == (
        "text_pair: not judged by retrieval, its 300 evaluation pairs make no pool with two targets",
    )


@pytest.mark.parametrize("over_champion", [GAIN, None])
def test_without_enough_evidence_nothing_is_promoted(over_champion: Interval | None) -> None:
    small = replace(pool(champion=0.3), is_large=False)
    decision = decide(
        replace(evaluation(small, over_champion=over_champion), enough=False), RegistrySettings()
    )
    assert decision.alias == "challenger"
    assert decision.not_judged[0].startswith("not judged: no pool is large enough")
    assert decision.not_judged[0] in decision.sentences


def test_an_evaluation_that_is_absent_or_broken_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no evaluation at"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"run_name": 3}')
    with pytest.raises(ValueError, match=r"evaluation.json: .*run_name"):
        read_evaluation(tmp_path)
