"""The executor of all jobs: the steps in one process, which signs the run and waits for pools asleep."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, cast

import dagster as dg

from orchestration.pools import wait_for_pool
from orchestration.run_process import process_tags
from orchestration.settings_tags import settings_tags

if TYPE_CHECKING:  # dagster exports none of them
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode


class SignedExecutor(dg.Executor):
    """Dagster's in-process executor, around which a run carries the tags of its process and its settings.

    Runs of the UI and of the daemon are executed by it. A run that starts in a terminal is not, and is signed
    by the command.
    """

    def __init__(self, steps: dg.Executor) -> None:
        self.steps = steps

    @property
    def retries(self) -> "RetryMode":
        """As Dagster's own."""
        return self.steps.retries

    def execute(
        self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan"
    ) -> Iterator[dg.DagsterEvent]:
        """Execute the plan."""
        instance, run_id = plan_context.instance, plan_context.run_id
        run, job = plan_context.plan_data.dagster_run, plan_context.job.get_definition()
        instance.add_run_tags(run_id, {**settings_tags(job, run.run_config), **process_tags(run_id)})
        steps = cast("Generator[dg.DagsterEvent]", self.steps.execute(plan_context, execution_plan))
        with closing(steps):  # whoever stops the waiting also leaves the queue of the pool
            for event in steps:
                yield event
                wait_for_pool(instance, event, run_id, plan_context.log.info)


def _sign(context: dg.InitExecutorContext) -> SignedExecutor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return SignedExecutor(create(context))


signed_executor = dg.ExecutorDefinition(
    name="signed_in_process",
    config_schema=dg.in_process_executor.config_schema.config_type,
    executor_creation_fn=_sign,
    description="The steps in one process, which signs the run.",
)
