"""Whether an evaluated model becomes champion. Pure: it decides on numbers and touches no registry."""

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

    @property
    def promoted(self) -> bool:
        """Whether it is the new champion."""
        return self.alias == contract.CHAMPION


def decide(evaluation: Evaluation, settings: RegistrySettings) -> Decision:
    """Champion or challenger.

    Against a champion: the lower bound of the gain in the mean primary metric must exceed `min_gain`, and no
    task may fall by more than `max_task_loss`. The first version must beat the untrained model instead.
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
    if not evaluation.enough:
        reasons.append("no pool is large enough to count, so all of them were taken")
    fallen = _fallen_tasks(evaluation, settings.max_task_loss)
    reasons += fallen
    promoted = gain.low > needed and not fallen
    return Decision(contract.CHAMPION if promoted else contract.CHALLENGER, tuple(reasons))


def _fallen_tasks(evaluation: Evaluation, max_task_loss: float) -> list[str]:
    """One sentence for each task that lost more than it may; choices are judged by accuracy."""
    sentences = []
    for is_choice, metric in ((False, PRIMARY), (True, "recall@1")):
        by_task: dict[str, list[PoolResult]] = {}
        for pool in evaluation.pools:
            judged = pool.is_large if is_choice else pool.counts
            if pool.is_choice == is_choice and judged and CHAMPION in pool.scores:
                by_task.setdefault(pool.task.value, []).append(pool)
        for task, pools in by_task.items():
            now, before = (
                sum(pool.scores[system][metric] for pool in pools) / len(pools)
                for system in (TRAINED, CHAMPION)
            )
            if before - now > max_task_loss:
                what = "accuracy" if is_choice else metric
                sentences.append(
                    f"{task}: {what} falls from {before:.4f} to {now:.4f}, more than {max_task_loss:.4f}"
                )
    return sentences
