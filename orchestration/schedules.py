"""Schedules, off until somebody turns them on in the UI. Their time zone is a setting of the environment."""

from collections.abc import Collection, Iterator

import dagster as dg

from assets.resources import ManifestResource
from orchestration.sensors import OTHER_SUITES, RELOAD, unknown_sources

PRUNE_CRON = "0 21 * * 6"
CURATE_CRON = "0 22 * * 6"
TRAIN_CRON = "0 2 * * 0"


def weekly_corpus(
    sources: dg.PartitionsDefinition[str], own_checks: Collection[str], time_zone: str
) -> dg.ScheduleDefinition:
    """Every Saturday night, each source of the manifest anew; one that has not changed is reused."""

    @dg.schedule(
        job_name="corpus",
        cron_schedule=CURATE_CRON,
        execution_timezone=time_zone,
        name="weekly_corpus",
        description=weekly_corpus.__doc__,
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, manifest: ManifestResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if set(manifest.own_checks()) != set(own_checks):
            yield dg.SkipReason(OTHER_SUITES)
            return
        day, described = f"{context.scheduled_execution_time:%Y-%m-%d}", manifest.load()
        unknown = unknown_sources(described, sources)
        if unknown:
            context.log.warning(f"{', '.join(unknown)}: {RELOAD}")
        for name in described.names:
            if name not in unknown:
                yield dg.RunRequest(run_key=f"{day}:{name}", partition_key=name)

    return schedule


def weekly_model(time_zone: str) -> dg.ScheduleDefinition:
    """Every Sunday morning, retraining; where neither data nor recipe has changed, the last run is reused."""
    return _weekly("model", TRAIN_CRON, time_zone, weekly_model.__doc__)


def weekly_prune(time_zone: str) -> dg.ScheduleDefinition:
    """Every Saturday evening, before the next retraining, what the earlier ones left behind is deleted."""
    return _weekly("prune", PRUNE_CRON, time_zone, weekly_prune.__doc__)


def _weekly(job: str, cron: str, time_zone: str, description: str | None) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        job_name=job,
        cron_schedule=cron,
        execution_timezone=time_zone,
        name=f"weekly_{job}",
        description=description,
    )
