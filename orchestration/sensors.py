"""Sensors, off until somebody turns them on in the UI: new source files, and new accepted data."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from assets.resources import ManifestResource, WorkspaceResource
from vipolyqwen_core.config import to_json
from vipolyqwen_core.corpus.manifest import Manifest, Source

INTERVAL_SECONDS = 300
BUSY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def changed_sources() -> dg.SensorDefinition:
    """A source whose files, entry in the manifest or own suites have changed is curated to validated anew."""

    @dg.sensor(
        job_name="corpus",
        name="changed_sources",
        minimum_interval_seconds=INTERVAL_SECONDS,
        description=changed_sources.__doc__,
    )
    def sensor(
        context: dg.SensorEvaluationContext, manifest: ManifestResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        seen = json.loads(context.cursor or "{}")
        described = manifest.load()
        suites = suites_state(described)
        now = {source.name: f"{source_state(source)}{suites}" for source in described.sources}
        changed = [name for name, fingerprint in now.items() if seen.get(name) != fingerprint]
        for name in changed:
            yield dg.RunRequest(run_key=f"{name}:{now[name]}", partition_key=name)
        if not changed:
            yield dg.SkipReason("no source has changed")
        context.update_cursor(json.dumps(now))

    return sensor


def accepted_data() -> dg.SensorDefinition:
    """Once every source has a version that passed its checks, and one of them is new, the model is trained.

    It waits for runs of `corpus` that are under way, so that ten new sources train one model and not ten.
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
        place = workspace.open()
        versions = {name: accepted_version(place.validated(name)) for name in manifest.load().names}
        if missing := [name for name, version in versions.items() if version is None]:
            return dg.SkipReason(f"not accepted yet: {', '.join(missing)}")
        state = json.dumps(versions, sort_keys=True)
        if state == context.cursor:
            return dg.SkipReason("no source has a new accepted version")
        if context.instance.get_runs(filters=dg.RunsFilter(job_name="corpus", statuses=BUSY), limit=1):
            return dg.SkipReason("waiting for the runs of corpus that are under way")
        context.update_cursor(state)
        return dg.RunRequest(run_key=state)

    return sensor


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
    files = [Path(entry) for entry in manifest.expectations]
    return "-" + digest(
        *manifest.expectations, *(file.read_text("utf-8") for file in files if file.is_file())
    )


def digest(*texts: str) -> str:
    """16 hex digits of a hash of texts."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()


def accepted_version(folder: Path) -> str | None:
    """The version of a source that may train; None: no version has passed its checks yet."""
    file = folder / "accepted.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["version"]) if file.is_file() else None
