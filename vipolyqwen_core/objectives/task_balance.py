"""Dynamic task weights: a task weighs inversely to its running loss, so that none drowns the others.

The state lives outside the losses: the engine keeps it, updates it once a step from sums that are the same on
all ranks, and saves it in checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vipolyqwen_core.contract import Task


@dataclass(frozen=True)
class TaskBalance:
    """Running loss of each task that has been seen."""

    running: Mapping[Task, float] = field(default_factory=dict)
    """Exponential mean of the loss by task: the weighted sum of its terms, each a mean over its pairs."""
    decay: float = 0.98
    """Share of the old mean that a step keeps."""

    def updated(self, losses: Mapping[Task, float]) -> "TaskBalance":
        """The balance after a step; `losses` holds the tasks that the step had."""
        running = dict(self.running)
        for task, loss in losses.items():
            old = running.get(task)
            running[task] = loss if old is None else self.decay * old + (1 - self.decay) * loss
        return TaskBalance(running, self.decay)

    def weights(self) -> dict[Task, float]:
        """Weight of each task seen: inverse to its running loss, with mean 1 over these tasks."""
        smallest = 1e-3  # a task that is solved must not take everything
        inverse = {task: 1.0 / max(loss, smallest) for task, loss in self.running.items()}
        mean = sum(inverse.values()) / max(len(inverse), 1)
        return {task: value / mean for task, value in inverse.items()}
