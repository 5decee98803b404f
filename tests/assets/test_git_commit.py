"""The commit that a version carries."""

import re
import subprocess
from pathlib import Path

import pytest

from assets.resources import git_commit


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.com"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    return tmp_path


@pytest.mark.parametrize("is_foreign", ["0", "1"])
def test_a_commit_is_found_whoever_owns_the_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, is_foreign: str
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", is_foreign)
    assert re.fullmatch("[0-9a-f]{40}", git_commit(checkout) or "")


def test_a_folder_without_a_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None
