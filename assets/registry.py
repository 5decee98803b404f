"""The registry: which version is champion, which came of a run, where its files lie."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from vipolyqwen_core.contract import CHALLENGER, CHAMPION, REGISTERED_MODEL
from vipolyqwen_core.corpus.tables import link_or_copy
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

RUN_TAG = "vipolyqwen.run"
"""Tag of a version: the training run it came of."""
MODEL_TAG = "vipolyqwen.model_digest"
"""Tag of a version: hash of its model's files. Absent at versions that were registered before it existed."""
SPLIT_TAG = "vipolyqwen.split"
"""Tag of a version: the split that it was trained under. Absent where that had no name yet."""
DECISION_TAG = "vipolyqwen.decision"
"""Tag of a version: why it is champion or challenger. Written last: a version without it is half done."""

NOT_JUDGED_TAG = "vipolyqwen.not_judged"
"""Tag of a version: what could not be judged, or rests on few pairs only. Absent where there was
nothing to say, and at versions that were registered before the tag existed."""

CHAMPION_TAG = "vipolyqwen.champion_since"
"""Tag of a version: when it was last made champion. It stays where the alias has moved on."""


@dataclass(frozen=True)
class Version:
    """A registered version."""

    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def run_name(self) -> str | None:
        """The training run it came of."""
        return self.tags.get(RUN_TAG)

    @property
    def model_digest(self) -> str | None:
        """Hash of its model's files; None: it was registered before this was kept."""
        return self.tags.get(MODEL_TAG)

    @property
    def split(self) -> str | None:
        """The split that it was trained under; None: not known."""
        return self.tags.get(SPLIT_TAG)

    def is_of(self, run_name: str, digest: str) -> bool:
        """Whether it is the model that a run has made.

        The name alone does not tell: another workspace with the same recipe and data, or a run that was
        deleted and trained again, gives other weights under it.
        """
        return self.run_name == run_name and self.model_digest in (None, digest)

    @property
    def is_settled(self) -> bool:
        """Whether its registration came to its end."""
        return DECISION_TAG in self.tags


def champion(client: Any) -> Version | None:
    """The version in use; None: there is none yet.

    Raises:
        dg.Failure: somebody took the alias away. Without it a worse model would be promoted or exported
    """
    now = version_with_alias(client, CHAMPION)
    if now is None:
        found = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
        before = [entry for entry in found if CHAMPION_TAG in entry.tags]
        if before:
            last = max(before, key=lambda entry: str(entry.tags[CHAMPION_TAG]))
            raise dg.Failure(
                f"no version is champion any more, which version {last.version} was: give the alias back "
                f"with `vipolyqwen rollback {last.version}`"
            )
    return now


def version_in_use(client: Any) -> Version | None:
    """The champion; before there is any, the challenger: nothing was in use that it could make worse.

    Raises:
        dg.Failure: as `champion`
    """
    return champion(client) or version_with_alias(client, CHALLENGER)


def numbered_version(client: Any, number: int) -> Version:
    """The version of that number.

    Raises:
        ValueError: there is none
    """
    found = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    numbers = sorted(int(entry.version) for entry in found)
    if number not in numbers:
        known = ", ".join(map(str, numbers)) or "none yet"
        raise ValueError(f"{REGISTERED_MODEL} has no version {number}; it has {known}")
    return _version(client.get_model_version(REGISTERED_MODEL, str(number)))


def version_with_alias(client: Any, alias: str) -> Version | None:
    """The version that carries an alias."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(REGISTERED_MODEL, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # model, or alias
            return None
        raise


def version_of_run(client: Any, run_name: str, digest: str) -> Version | None:
    """The version of the model that a training run has made, as far as one was finished."""
    own = versions_of_run(client, run_name, digest)
    return next((version for version in own if version.is_settled), None)


def half_registered(client: Any, run_name: str, digest: str) -> Version | None:
    """The version of a run's model whose registration was killed before its decision was written."""
    own = versions_of_run(client, run_name, digest)
    half = (version for version in own if not version.is_settled)
    return next((version for version in half if version.model_digest == digest), None)


def versions_of_run(client: Any, run_name: str, digest: str) -> list[Version]:
    """Versions of the model that a training run has made, the newest first.

    Args:
        digest: of the model
    """
    found = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    named = [entry for entry in found if entry.tags.get(RUN_TAG) == run_name]
    named.sort(key=lambda entry: -int(entry.version))
    versions = [_version(client.get_model_version(REGISTERED_MODEL, entry.version)) for entry in named]
    return [version for version in versions if version.is_of(run_name, digest)]


def give_alias(client: Any, number: int, alias: str) -> None:
    """Let a version carry an alias; a champion is no challenger any more."""
    client.set_registered_model_alias(REGISTERED_MODEL, alias, str(number))
    if alias == CHAMPION:
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        client.set_model_version_tag(REGISTERED_MODEL, str(number), CHAMPION_TAG, since)
        rival = version_with_alias(client, CHALLENGER)
        if rival is not None and rival.number == number:
            client.delete_registered_model_alias(REGISTERED_MODEL, CHALLENGER)


def model_folder(workspace: Workspace, number: int, digest: str | None) -> Path:
    """The model directory of a version; where it is missing, as on a rebuilt machine, the registry's own.

    Args:
        digest: of the version's model; None: not known
    Raises:
        ValueError: it is neither here nor in the registry
    """
    folder = model_place(workspace, number, digest)
    if not (folder / "config.json").is_file():
        from vipolyqwen_core.serving.registration import download_model_directory

        with written_aside(folder) as aside:
            download_model_directory(number, aside)
            if digest not in (None, model_digest(aside)):
                raise ValueError(f"version {number} of the registry is another model than the one wanted")
    return folder


def keep_model(workspace: Workspace, model: Path, number: int) -> Path:
    """A model directory at its place among the registered ones; without copying where the disk can link."""
    folder = model_place(workspace, number, model_digest(model))
    with written_aside(folder) as aside:
        shutil.copytree(model, aside, copy_function=link_or_copy)
    return folder


def model_place(workspace: Workspace, number: int, digest: str | None) -> Path:
    """Where the model of a version lies, or will: `models/vN`.

    Another registry has other models under the same numbers: once MLFLOW_TRACKING_URI names it, those of
    before stay where they are, since the exported table may be of one, and its own get the digest as well.
    """
    folder = workspace.models / f"v{number}"
    if digest is None or not (folder / "config.json").is_file() or model_digest(folder) == digest:
        return folder
    return workspace.models / f"v{number}-{digest[:8]}"


def _version(entry: Any) -> Version:
    return Version(int(entry.version), tuple(entry.aliases), dict(entry.tags))
