"""Whether an evaluated model becomes champion. Pure: it decides on numbers and touches no registry."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vipolyqwen_core import contract
from vipolyqwen_core.config import RegistrySettings
from vipolyqwen_core.evaluation.bootstrap import MIN_COMPONENTS
from vipolyqwen_core.evaluation.metrics import PRIMARY
from vipolyqwen_core.evaluation.results import CHAMPION, TRAINED, Evaluation, PoolResult


@dataclass(frozen=True)
class Decision:
    """The alias a version gets, and why."""

    alias: str
    """`champion` or `challenger`"""
    reasons: tuple[str, ...]
    """One sentence each, for the registry and the report."""
    not_judged: tuple[str, ...] = ()
    """What could not be judged, or only on few pairs, or fell on so few that it may be chance: one sentence
    each."""

    @property
    def promoted(self) -> bool:
        """Whether it is the new champion."""
        return self.alias == contract.CHAMPION

    @property
    def sentences(self) -> tuple[str, ...]:
        """All there is to say."""
        return (*self.reasons, *self.not_judged)


def decide(evaluation: Evaluation, settings: RegistrySettings) -> Decision:
    """Champion or challenger.

    Against a champion: the lower bound of the gain in the mean primary metric must exceed `min_gain`, no task
    may fall by more than `max_task_loss`, and no language's Spearman over scored pairs by more than
    `max_similarity_loss`. The first version must beat the untrained model instead. Without a pool that is
    large enough nothing is proved, so the version is a challenger, whatever its gain.

    Nothing falls unseen. A task that has only small pools is held to the same limit on these: it may be kept
    from promotion by chance. A small pool beside a large one of its task keeps the champion where it is sure
    to have fallen by more than the limit, and is named where it may be chance. Named too is a task whose
    evaluation pairs make no pool.
    """
    gain = evaluation.gain_over_champion
    if gain is None:
        gain, rival, needed = evaluation.gain_over_untrained, "the untrained model", 0.0
    else:
        rival, needed = "the champion", settings.min_gain
    reasons = [
        f"{evaluation.primary_metric} {evaluation.primary[TRAINED]:.4f}: gain over {rival} {gain.mean:+.4f}, "
        f"interval [{gain.low:+.4f}, {gain.high:+.4f}], needed above {needed:.4f}"
    ]
    falls = [
        *_falls_of_tasks(evaluation, settings.max_task_loss),
        *_falls_of_small_pools(evaluation, settings.max_task_loss),
        *_falls_of_similarities(evaluation, settings.max_similarity_loss),
    ]
    fallen = [fall.sentence for fall in falls if fall.is_sure]
    not_judged = [*_unranked_tasks(evaluation), *_thin_tasks(evaluation)]
    not_judged += [fall.sentence for fall in falls if not fall.is_sure]
    if not evaluation.enough:
        not_judged.insert(
            0, "not judged: no pool is large enough to count, so no gain is proved; more pairs are needed"
        )
    promoted = evaluation.enough and gain.low > needed and not fallen
    alias = contract.CHAMPION if promoted else contract.CHALLENGER
    return Decision(alias, (*reasons, *fallen), tuple(not_judged))


class _Fall(NamedTuple):
    """Something that lost more than it may against the champion."""

    sentence: str
    is_sure: bool
    """Whether it keeps the champion; else it may be chance, and is only named."""


def _falls_of_tasks(evaluation: Evaluation, limit: float) -> Iterator[_Fall]:
    """Falls of whole tasks, over their large pools, or over all where none is large."""
    for task, metric, what, pools in _tasks(evaluation):
        rated = [pool for pool in pools if CHAMPION in pool.scores]
        judged = [pool for pool in rated if pool.is_large] or rated
        if not judged:
            continue
        now, before = (
            sum(pool.scores[system][metric] for pool in judged) / len(judged)
            for system in (TRAINED, CHAMPION)
        )
        if before - now > limit:
            sentence = f"{task}: {what} falls from {before:.4f} to {now:.4f}, more than {limit:.4f}"
            yield _Fall(sentence, is_sure=True)


def _falls_of_small_pools(evaluation: Evaluation, limit: float) -> Iterator[_Fall]:
    """Falls of small pools whose task is judged on large ones.

    With dozens of small pools some always fall by chance. So a fall is sure only where the whole interval of
    the paired gain lies beyond the limit, over enough components to believe it: a language that breaks down.
    """
    for _, metric, what, pools in _tasks(evaluation):
        if not any(pool.is_large for pool in pools):
            continue
        for pool in pools:
            gain = pool.gain_over_champion
            if pool.is_large or gain is None:
                continue
            now, before = (pool.scores[system][metric] for system in (TRAINED, CHAMPION))
            if before - now > limit:
                is_sure = gain.high < -limit and pool.num_components >= MIN_COMPONENTS
                fall = f"{pool.name}: {what} falls from {before:.4f} to {now:.4f} on {pool.num_pairs} pairs"
                how_sure = f"surely by more than {limit:.4f}" if is_sure else "too few to be sure"
                yield _Fall(f"{fall}, {how_sure}", is_sure)


def _falls_of_similarities(evaluation: Evaluation, limit: float) -> Iterator[_Fall]:
    """Falls of the Spearman of scored pairs, by language; sure where there are enough pairs."""
    for result in evaluation.similarities:
        before = result.scores.get(CHAMPION, {}).get("spearman")
        if before is None:
            continue
        # None of its own: all its cosines are alike, since the scores that the champion follows are not.
        now = result.scores[TRAINED].get("spearman", 0.0)
        if before - now > limit:
            fall = f"scored pairs/{result.language}: Spearman falls from {before:.4f} to {now:.4f}"
            few = f"on {result.num_pairs} pairs, too few to be sure"
            how_sure = f"more than {limit:.4f}" if result.is_large else few
            yield _Fall(f"{fall}, {how_sure}", result.is_large)


def _unranked_tasks(evaluation: Evaluation) -> list[str]:
    """One sentence for each task whose evaluation pairs make no pool."""
    ranked = {pool.task for pool in evaluation.pools}
    return [
        f"{task.value}: not judged by retrieval, its {number} evaluation pairs make no pool with two targets"
        for task, number in evaluation.rows_by_task.items()
        if task not in ranked
    ]


def _thin_tasks(evaluation: Evaluation) -> list[str]:
    """One sentence for each task that has only small pools, whether or not there is a champion."""
    thin = []
    for task, _, what, pools in _tasks(evaluation):
        if not any(pool.is_large for pool in pools):
            pairs = sum(pool.num_pairs for pool in pools)
            thin.append(f"{task}: {what} rests on {pairs} pairs only, no pool is large enough")
    return thin


def _tasks(evaluation: Evaluation) -> Iterator[tuple[str, str, str, list[PoolResult]]]:
    """Task, metric, the metric's name in a sentence, pools. Choices stand alone, judged by accuracy."""
    for is_choice, metric, what in ((False, PRIMARY, PRIMARY), (True, "recall@1", "accuracy")):
        by_task: dict[str, list[PoolResult]] = {}
        for pool in evaluation.pools:
            if pool.is_choice == is_choice:
                by_task.setdefault(pool.task.value, []).append(pool)
        for task, pools in by_task.items():
            yield task, metric, what, pools
