"""Whether an evaluated model becomes champion. Pure: it decides on numbers and touches no registry."""

from collections.abc import Iterator
from dataclasses import dataclass

from vipolyqwen_core import contract
from vipolyqwen_core.config import RegistrySettings
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
    """What could not be judged, or only on few pairs: one sentence each."""

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

    Against a champion: the lower bound of the gain in the mean primary metric must exceed `min_gain`, and no
    task may fall by more than `max_task_loss`. The first version must beat the untrained model instead.
    Without a pool that is large enough nothing is proved, so the version is a challenger, whatever its gain.
    A task that has only small pools is held to the same limit on these: it may be kept from promotion by
    chance, but it never falls unseen.
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
    fallen, thin = _fallen_tasks(evaluation, settings.max_task_loss), _thin_tasks(evaluation)
    if not evaluation.enough:
        thin.insert(
            0, "not judged: no pool is large enough to count, so no gain is proved; more pairs are needed"
        )
    promoted = evaluation.enough and gain.low > needed and not fallen
    alias = contract.CHAMPION if promoted else contract.CHALLENGER
    return Decision(alias, (*reasons, *fallen), tuple(thin))


def _fallen_tasks(evaluation: Evaluation, max_task_loss: float) -> list[str]:
    """One sentence for each task that lost more than it may against the champion."""
    fallen = []
    for task, metric, what, pools in _tasks(evaluation):
        rated = [pool for pool in pools if CHAMPION in pool.scores]
        judged = [pool for pool in rated if pool.is_large] or rated
        if not judged:
            continue
        now, before = (
            sum(pool.scores[system][metric] for pool in judged) / len(judged)
            for system in (TRAINED, CHAMPION)
        )
        if before - now > max_task_loss:
            fallen.append(
                f"{task}: {what} falls from {before:.4f} to {now:.4f}, more than {max_task_loss:.4f}"
            )
    return fallen


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
