"""Sensors, off until somebody turns them on in the UI: new source files, and new accepted data.

A cursor remembers for which state of the data a run was asked. A run carries no key: Dagster would never
repeat one, and a source that goes back to an earlier state would be ignored. Where the run failed it is asked
for again, a few times: storage that does not answer comes back, and what fails for a reason of its own fails
for good.
"""

import hashlib
import json
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dagster as dg

from assets.resources import ManifestResource, WorkspaceResource
from orchestration.run_process import UNFINISHED, close_interrupted_runs
from quality.accepted import accepted_folder, accepted_pictures
from vipolyqwen_core.config import to_json
from vipolyqwen_core.corpus.manifest import Manifest, Source

INTERVAL_SECONDS = 300
SECONDS_TO_LOOK = 40
"""At the files of all sources: Dagster ends a tick after a minute, and with it what the others asked for."""
MAX_TIMES = 3
"""Runs that are asked for, for one state of the data."""
PAUSE_SECONDS = 1800
"""Between the failure of a run and the next one that is asked for."""
STATE_TAG = "vipolyqwen/state"
"""Tag of a run: the state of the data that it was asked for."""
BUSY = [dg.DagsterRunStatus.QUEUED, *UNFINISHED]


@dataclass
class Cursor:
    """What a sensor has asked for: of each name, for which state and how often."""

    states: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str | None) -> "Cursor":
        """The cursor of the last tick; a new one where there is none, or one of another form."""
        content = json.loads(text or "{}")
        return cls(content.get("states", {}), content.get("times", {}))

    def __str__(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def is_due(self, name: str, state: str, job: str, instance: dg.DagsterInstance) -> bool:
        """Whether to ask for a run: the state is another one, or its run failed a while ago."""
        if self.states.get(name) != state:
            return True
        if self.times[name] >= MAX_TIMES:
            return False
        runs = instance.get_run_records(dg.RunsFilter(job_name=job, tags={STATE_TAG: state}), limit=1)
        return any(
            run.dagster_run.status == dg.DagsterRunStatus.FAILURE
            # in the future, if the clock was set back since: it might be days until this is half an hour ago
            and abs(time.time() - run.update_timestamp.timestamp()) >= PAUSE_SECONDS
            for run in runs
        )

    def note(self, name: str, state: str) -> None:
        """A run is asked for."""
        self.times[name] = self.times[name] + 1 if self.states.get(name) == state else 1
        self.states[name] = state

    def keep(self, names: Collection[str]) -> None:
        """Forget what is not among the names any more."""
        for name in self.states.keys() - set(names):
            del self.states[name], self.times[name]


def changed_sources(
    sources: dg.PartitionsDefinition[str], own_checks: Collection[str]
) -> dg.SensorDefinition:
    """A source whose files, entry in the manifest or own suites have changed is curated to validated anew.

    Pictures under an `image_root` are not looked at: listing them at every tick would cost too much.
    """

    @dg.sensor(
        job_name="corpus",
        name="changed_sources",
        minimum_interval_seconds=INTERVAL_SECONDS,
        description=changed_sources.__doc__,
    )
    def sensor(
        context: dg.SensorEvaluationContext, manifest: ManifestResource
    ) -> dg.SensorResult | dg.SkipReason:
        described, cursor = manifest.load(), Cursor.of(context.cursor)
        if set(manifest.own_checks()) != set(own_checks):
            return dg.SkipReason(OTHER_SUITES)
        unknown = unknown_sources(described, sources)
        if unknown:
            context.log.warning(f"{', '.join(unknown)}: {RELOAD}")
        known, suites = [s for s in described.sources if s.name not in unknown], suites_state(described)
        now = {name: f"{state}{suites}" for name, state in source_states(known).items()}
        names = [source.name for source in known]
        if silent := [name for name in names if name not in now]:
            context.log.warning(f"{', '.join(silent)}: no answer of the storage in {SECONDS_TO_LOOK} seconds")
        cursor.keep(names)
        due = [name for name, state in now.items() if cursor.is_due(name, state, "corpus", context.instance)]
        for name in due:
            cursor.note(name, now[name])
        reason = "no source has changed" + (f"; {', '.join(unknown)}: {RELOAD}" if unknown else "")
        return dg.SensorResult(
            run_requests=[dg.RunRequest(partition_key=name, tags={STATE_TAG: now[name]}) for name in due],
            skip_reason=None if due else dg.SkipReason(reason),
            cursor=str(cursor),
        )

    return sensor


def accepted_data(sources: dg.PartitionsDefinition[str]) -> dg.SensorDefinition:
    """Once every source has a version that passed its checks, and one of them is new, the model is trained.

    So it is where the manifest has other sources than before, or gives one another weight, place or
    `off_limits`: their tables stay the same, the training does not. Where pictures have other paths than
    before, it is the other way round: training stands, and the exported table names the new paths.

    It waits for runs of `corpus` that are under way, so that ten new sources train one model and not ten, and
    for the run of `model` that is: what is new by then is trained after it.
    """

    @dg.sensor(
        job_name="model",
        name="accepted_data",
        minimum_interval_seconds=INTERVAL_SECONDS,
        description=accepted_data.__doc__,
    )
    def sensor(
        context: dg.SensorEvaluationContext, workspace: WorkspaceResource, manifest: ManifestResource
    ) -> dg.RunRequest | dg.SkipReason:
        for run_id in close_interrupted_runs(context.instance):
            context.log.warning(f"run {run_id[:8]} of a process that is gone was marked as failed")
        place, described, cursor = workspace.open(), manifest.load(), Cursor.of(context.cursor)
        if unknown := unknown_sources(described, sources):
            return dg.SkipReason(f"{', '.join(unknown)}: {RELOAD}")
        accepted = {name: accepted_folder(place.validated(name)) for name in described.names}
        if missing := [name for name, folder in accepted.items() if folder is None]:
            return dg.SkipReason(f"not accepted yet: {', '.join(missing)}")
        for job in ("corpus", "model"):
            busy = dg.RunsFilter(job_name=job, statuses=BUSY)
            if runs := context.instance.get_runs(filters=busy, limit=1):
                return dg.SkipReason(f"waiting for run {runs[0].run_id[:8]} of {job}, which is under way")
        versions = {
            name: (folder.name, accepted_pictures(place.validated(name)))
            for name, folder in accepted.items()
            if folder is not None
        }
        trained_on = [(s.name, *versions[s.name], s.weight, s.off_limits) for s in described.sources]
        state = digest(json.dumps(trained_on))
        if not cursor.is_due("model", state, "model", context.instance):
            return dg.SkipReason("no source has a new accepted version, nor another use in the manifest")
        cursor.note("model", state)
        context.update_cursor(str(cursor))
        return dg.RunRequest(tags={STATE_TAG: state})

    return sensor


RELOAD = "new in the manifest; reload the code location, or start `vipolyqwen ui` again"
OTHER_SUITES = (
    "the manifest's `expectations` name other suites than before: reload the code location, or start "
    "`vipolyqwen ui` again; until then runs of `corpus` lack the check of one, or fail for want of it"
)


def unknown_sources(manifest: Manifest, sources: dg.PartitionsDefinition[str]) -> list[str]:
    """Sources that the manifest has got since the code location was loaded: none of its jobs knows them."""
    known = set(sources.get_partition_keys())
    return [name for name in manifest.names if name not in known]


def source_states(sources: Sequence[Source]) -> dict[str, str]:
    """The state of each source whose storage tells it in time; a silent one keeps no other waiting.

    Each has a thread of its own, which no process waits for at its end, as it does for those of a pool.
    """

    def look(source: Source, told: Future[str]) -> None:
        try:
            told.set_result(source_state(source))
        except BaseException as error:  # noqa: BLE001 (raised where the result is asked for)
            told.set_exception(error)

    looks: dict[str, Future[str]] = {source.name: Future() for source in sources}
    for source in sources:
        threading.Thread(target=look, args=(source, looks[source.name]), daemon=True).start()
    done, _ = wait(looks.values(), SECONDS_TO_LOOK)
    return {name: told.result() for name, told in looks.items() if told in done}


def source_state(source: Source) -> str:
    """Changes with the entry in the manifest and with the files it names: their names, sizes and versions.

    Files that are missing are a state like others: the run that is asked for says so, and the other sources
    are not kept waiting. Of a storage that tells neither a mark of the content nor a time, the sizes must do:
    it would be read whole at every tick.
    """
    from vipolyqwen_core.corpus.readers import files_fingerprint, list_files

    try:
        files = files_fingerprint(list_files(source, read_unversioned=False))
    except ValueError as error:
        files = digest(str(error))
    return f"{digest(to_json(source))}-{files[:16]}"


def suites_state(manifest: Manifest) -> str:
    """Changes with the suites of one's own; empty where there are none."""
    if not manifest.expectations:
        return ""
    return "-" + digest(*manifest.expectations, *map(_content, manifest.expectations))


def _content(entry: str) -> str:
    """The content of a suite's file, whatever it is; none of a function, and of a file that cannot be read.

    The run that is asked for says what is wrong with it.
    """
    try:
        return Path(entry).read_bytes().decode("latin-1")
    except OSError:
        return ""


def digest(*texts: str) -> str:
    """16 hex digits of a hash of texts."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
