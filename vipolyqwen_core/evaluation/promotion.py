"""Whether an evaluated model becomes champion. Pure: it decides on numbers and touches no registry."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vipolyqwen_core import contract
from vipolyqwen_core.config import RegistrySettings
from vipolyqwen_core.evaluation.bootstrap import MIN_COMPONENTS
from vipolyqwen_core.evaluation.metrics import judging_metric
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


class _Fall(NamedTuple):
    """Something that lost more than it may against the champion."""

    sentence: str
    is_sure: bool
    """Whether it keeps the champion; else it may be chance, and is only named."""


class _TaskPools(NamedTuple):
    """The pools of a task that are judged by the same metric, the large and the small ones."""

    task: str
    metric: str
    metric_name: str
    """In a sentence."""
    large: list[PoolResult]
    small: list[PoolResult]


def decide(evaluation: Evaluation, settings: RegistrySettings) -> Decision:
    """Champion or challenger.

    The first version must beat the untrained model, for sure. A later one becomes champion where

    - the lower bound of its gain in the mean primary metric over the champion exceeds `min_gain`;
    - no task falls by more than `max_task_loss`, in the mean of its large pools; one that has only small
      pools is held to the same limit on these, so chance may keep it from promotion;
    - no small pool beside a large one of its task falls by more than that for sure;
    - no language's Spearman over scored pairs falls by more than `max_similarity_loss`, where the pairs are
      enough to tell.

    One of another split, be it of another workspace, is no rival: it may have been trained on these pairs, or
    be made for other corpora. A person decides then, and the version is a challenger.

    Without a pool that is large enough nothing is proved, so the version is a challenger, whatever its gain.
    Nothing falls unseen: falls that may be chance are named, and so are tasks that have only small pools, or
    none.
    """
    gain = evaluation.gain_over_champion
    tasks = _by_task(evaluation)
    falls: list[_Fall] = []
    if gain is None:
        gain, rival, needed = evaluation.gain_over_untrained, "the untrained model", 0.0
    else:
        rival, needed = f"the {evaluation.rival}", settings.min_gain
        falls += _falls_of_tasks(tasks, settings.max_task_loss)
        falls += _falls_of_small_pools(tasks, settings.max_task_loss)
        falls += _falls_of_similarities(evaluation, settings.max_similarity_loss)
    reasons = [
        f"{evaluation.primary_metric} {evaluation.primary[TRAINED]:.4f}: gain over {rival} {gain.mean:+.4f}, "
        f"interval [{gain.low:+.4f}, {gain.high:+.4f}], needed above {needed:.4f}"
    ]
    fallen = [fall.sentence for fall in falls if fall.is_sure]
    not_judged = [*_unranked_tasks(evaluation), *_thin_tasks(tasks)]
    not_judged += [fall.sentence for fall in falls if not fall.is_sure]
    if not evaluation.enough:
        not_judged.insert(
            0, "not judged: no pool is large enough to count, so no gain is proved; more pairs are needed"
        )
    if evaluation.champion_is_apart:
        fallen.append(
            "not promoted by itself: the champion was trained under another split (in another workspace, or "
            "split/ was lost), perhaps on these pairs, perhaps for other corpora; `vipolyqwen rollback` with "
            "the number of this version makes it champion"
        )
    promoted = evaluation.enough and gain.low > needed and not fallen
    alias = contract.CHAMPION if promoted else contract.CHALLENGER
    return Decision(alias, (*reasons, *fallen), tuple(not_judged))


def _by_task(evaluation: Evaluation) -> list[_TaskPools]:
    """The pools by task. Choices stand alone, behind the others: they are judged by accuracy."""
    found: dict[tuple[bool, str], _TaskPools] = {}
    for pool in sorted(evaluation.pools, key=lambda pool: pool.is_choice):
        task = pool.task.value
        metric = judging_metric(pool.is_choice)
        name = "accuracy" if pool.is_choice else metric
        pools = found.setdefault((pool.is_choice, task), _TaskPools(task, metric, name, [], []))
        (pools.large if pool.is_large else pools.small).append(pool)
    return list(found.values())


def _falls_of_tasks(tasks: list[_TaskPools], limit: float) -> Iterator[_Fall]:
    """Falls of whole tasks, in the mean of their large pools, or of the small ones where none is large."""
    for task in tasks:
        now, before = _now_and_before(task.large or task.small, task.metric)
        if before - now > limit:
            fall = _fall(task.task, task.metric_name, now, before)
            yield _Fall(f"{fall}, more than {limit:.4f}", is_sure=True)


def _falls_of_small_pools(tasks: list[_TaskPools], limit: float) -> Iterator[_Fall]:
    """Falls of small pools whose task is judged on large ones.

    With dozens of small pools some always fall by chance. So a fall is sure only where the whole interval of
    the paired gain lies beyond the limit, over enough components to believe it: a language that breaks down.
    """
    for task in tasks:
        for pool in task.small if task.large else ():
            gain = pool.gain_over_champion
            now, before = _now_and_before([pool], task.metric)
            if gain is not None and before - now > limit:
                is_sure = gain.high < -limit and pool.num_components >= MIN_COMPONENTS
                how_sure = f"surely by more than {limit:.4f}" if is_sure else "too few to be sure"
                fall = _fall(pool.name, task.metric_name, now, before)
                yield _Fall(f"{fall} on {pool.num_pairs} pairs, {how_sure}", is_sure)


def _falls_of_similarities(evaluation: Evaluation, limit: float) -> Iterator[_Fall]:
    """Falls of the Spearman of scored pairs, by language; sure where there are enough pairs."""
    for result in evaluation.similarities:
        before = result.scores.get(CHAMPION, {}).get("spearman")
        if before is None:
            continue
        # None of its own: all its cosines are alike, since the scores that the champion follows are not.
        now = result.scores[TRAINED].get("spearman", 0.0)
        if before - now > limit:
            few = f"on {result.num_pairs} pairs, too few to be sure"
            how_sure = f"more than {limit:.4f}" if result.is_large else few
            fall = _fall(f"scored pairs/{result.language}", "Spearman", now, before)
            yield _Fall(f"{fall}, {how_sure}", result.is_large)


def _now_and_before(pools: list[PoolResult], metric: str) -> tuple[float, float]:
    """The mean of a metric over pools, of this model and of the champion."""
    now, before = (
        sum(pool.scores[system][metric] for pool in pools) / len(pools) for system in (TRAINED, CHAMPION)
    )
    return now, before


def _fall(name: str, metric_name: str, now: float, before: float) -> str:
    return f"{name}: {metric_name} falls from {before:.4f} to {now:.4f}"


def _unranked_tasks(evaluation: Evaluation) -> list[str]:
    """One sentence for each task whose evaluation pairs make no pool."""
    ranked = {pool.task for pool in evaluation.pools}
    return [
        f"{task.value}: not judged by retrieval, its {number} evaluation pairs make no pool with two targets"
        for task, number in evaluation.rows_by_task.items()
        if task not in ranked
    ]


def _thin_tasks(tasks: list[_TaskPools]) -> list[str]:
    """One sentence for each task that has only small pools, whether or not there is a champion."""
    return [
        f"{task.task}: {task.metric_name} rests on {sum(pool.num_pairs for pool in task.small)} pairs only, "
        "no pool is large enough"
        for task in tasks
        if not task.large
    ]
