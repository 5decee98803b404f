"""Old versions of an image store go; what a table points into stays, however old it is."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

from quality import pinned_images
from quality.curate import curate
from quality.pinned_images import pinned_versions, remove_unpinned
from quality.training_set import build_training_set
from tests.quality.conftest import RECIPE, question
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.corpus.image_store import ImageStore, read_pins, write_images
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.training.rows import TrainingPictures
from vipolyqwen_core.workspace import Workspace

NAME = "corpus"


def picture(number: int) -> dict[str, object]:
    text = {"image_id": f"{number:032x}", "format": "PNG", "phash": "0" * 16, "origin": f"{number}.png"}
    return {**text, "bytes": b"picture" * number, "width": number, "height": 1, "reencoded": False}


@pytest.fixture
def store(workspace: Workspace) -> Path:
    """Seven versions of 1 to 7 pictures."""
    for number in range(1, 8):
        write_images(workspace.images(NAME), map(picture, range(1, number + 1)))
    return workspace.images(NAME)


def pin(folder: Path, path: Path, version: int) -> None:
    folder.mkdir(parents=True)
    images = {"path": str(path), "version": version}
    StageSummary("stage", "mark", "data", 1, 1, {}, details={"images": images}).write(folder)


def test_what_curated_validated_and_training_tables_point_into_stays(
    workspace: Workspace, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(workspace.curated(NAME), store, 5)
    pin(workspace.validated(NAME) / "a", store, 2)
    workspace.training_set.mkdir()
    images = {NAME: {"path": str(store), "version": 3}, "other": {"path": "elsewhere", "version": 4}}
    (workspace.training_set / "images.json").write_text(json.dumps(images))
    assert pinned_versions(NAME, workspace) == {2, 3, 5}
    monkeypatch.setattr(pinned_images, "KEPT_UNPINNED", timedelta(0))
    files = len(list((store / "data").iterdir()))
    assert remove_unpinned(NAME, workspace) == [1, 4, 6]
    assert len(list((store / "data").iterdir())) == files - 3
    for version in (2, 3, 5, 7):
        kept = ImageStore(store, version)
        assert kept.read([len(kept) - 1]) == [b"picture" * version]
    with pytest.raises(ValueError, match="has no version 4"):
        ImageStore(store, 4)


@pytest.fixture
def made_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version was made 20 days ago."""
    versions = lance.LanceDataset.versions

    def earlier(dataset: lance.LanceDataset) -> list[dict[str, Any]]:
        return [entry | {"timestamp": entry["timestamp"] - timedelta(days=20)} for entry in versions(dataset)]

    monkeypatch.setattr(lance.LanceDataset, "versions", earlier)


def wait(store: Path, days: int) -> None:
    """Let the versions that wait have waited so many days longer."""
    file = store.with_suffix(".unpinned.json")
    since = {version: datetime.fromisoformat(at) for version, at in json.loads(file.read_text()).items()}
    file.write_text(json.dumps({version: str(at - timedelta(days)) for version, at in since.items()}))


@pytest.mark.usefixtures("made_long_ago")
def test_a_version_that_a_running_process_may_still_read_stays(workspace: Workspace, store: Path) -> None:
    pin(workspace.curated(NAME), store, 1)
    assert remove_unpinned(NAME, workspace) == []
    wait(store, 15)
    shutil.rmtree(workspace.curated(NAME))
    assert remove_unpinned(NAME, workspace) == [2, 3, 4, 5, 6]
    wait(store, 13)
    assert remove_unpinned(NAME, workspace) == []
    assert len(ImageStore(store, 1)) == 1
    wait(store, 1)
    assert remove_unpinned(NAME, workspace) == [1]


def test_a_version_that_is_pinned_again_waits_anew(workspace: Workspace, store: Path) -> None:
    assert remove_unpinned(NAME, workspace) == []
    wait(store, 15)
    pin(workspace.curated(NAME), store, 3)
    assert remove_unpinned(NAME, workspace) == [1, 2, 4, 5, 6]
    shutil.rmtree(workspace.curated(NAME))
    assert remove_unpinned(NAME, workspace) == []
    assert len(ImageStore(store, 3)) == 3


def test_a_version_of_a_clock_that_was_ahead_waits_no_longer_than_others(
    workspace: Workspace, store: Path
) -> None:
    remove_unpinned(NAME, workspace)
    wait(store, -365)
    assert remove_unpinned(NAME, workspace) == []
    wait(store, 15)
    assert remove_unpinned(NAME, workspace) == [1, 2, 3, 4, 5, 6]


def test_a_source_without_pictures_has_nothing_to_remove(workspace: Workspace) -> None:
    assert remove_unpinned(NAME, workspace) == []


def test_a_source_that_changes_every_day_does_not_keep_every_version(
    workspace: Workspace, write_source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_images, "KEPT_UNPINNED", timedelta(0))
    versions = []
    for count in range(2, 6):
        source = write_source(map(question, range(count)), pictures=range(count))
        versions.append(curate(source, CurationSettings(), workspace).details["images"]["version"])
    with pytest.raises(ValueError, match="has no version"):
        ImageStore(workspace.images(NAME), versions[0])
    assert len(ImageStore(workspace.images(NAME), versions[-1])) == 5


def test_a_training_set_whose_store_was_deleted_and_filled_otherwise_does_not_read_other_pictures(
    workspace: Workspace, write_source, build
) -> None:
    build(write_source(map(question, range(4)), pictures=range(4)))
    pinned = read_pins(workspace.training_set)["corpus"]
    shutil.rmtree(workspace.images("corpus"))
    changed = write_source(map(question, range(4, 8)), pictures=range(4, 8))
    assert curate(changed, RECIPE.curation, workspace).details["images"]["version"] == pinned["version"]
    assert build_training_set(Manifest(sources=(changed,)), RECIPE, workspace).reused, "not accepted yet"
    with pytest.raises(ValueError, match="was deleted or replaced"):
        TrainingPictures(workspace.training_set).check()
    build(changed)
    TrainingPictures(workspace.training_set).check()


@pytest.mark.parametrize("error", [OSError("permission denied"), ValueError("LanceError(IO): disk")])
def test_a_store_that_cannot_be_cleaned_fails_no_curation_and_is_cleaned_later(
    workspace: Workspace,
    write_source,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fails(path: Path, versions: list[int]) -> None:
        raise error

    monkeypatch.setattr(pinned_images, "KEPT_UNPINNED", timedelta(0))
    curate(write_source(map(question, range(2)), pictures=range(2)), CurationSettings(), workspace)
    source = write_source(map(question, range(3)), pictures=range(3))
    with monkeypatch.context() as patch:
        patch.setattr(pinned_images, "remove_versions", fails)
        curated = curate(source, CurationSettings(), workspace)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(error) in warning
    store, version = workspace.images(NAME), curated.details["images"]["version"]
    assert len(ImageStore(store, version - 1)) == 2
    assert curate(source, CurationSettings(), workspace).reused
    with pytest.raises(ValueError, match="has no version"):
        ImageStore(store, version - 1)
