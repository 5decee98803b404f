"""The factory's commands: what is left of a run that failed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FAILING = """
import os
import sqlite3
import sys
import dagster as dg
from orchestration import factory
from vipolyqwen_core.__main__ import main

word = sys.argv.pop()

@dg.asset
def curated_corpus():
    raise LookupError(word)

def run_factory(*arguments):
    if word == "full":  # of a log on the same disk, too
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        raise sqlite3.OperationalError("database or disk is full\\n[SQL: INSERT]")
    factory.refuse_failure(dg.materialize([curated_corpus], raise_on_error=False), "receipts")

factory.run_factory = run_factory
main()
"""
"""The command line, with a factory whose first stage fails with the last argument."""


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command whose stage fails with a word."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it hides what waits in a buffer

    def run(*arguments: str, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        command = [*within, sys.executable, "-c", FAILING, "--home", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_a_failed_stage_ends_in_a_sentence_and_its_traceback_is_kept(fail, tmp_path: Path) -> None:
    for word in ("first", "second"):
        ended = fail("run", word)
        assert ended.returncode == 1
        assert f"error: curated_corpus of source receipts: LookupError: {word} (details: " in ended.stderr
        assert "Traceback" not in ended.stderr
    for log, word in (("factory.log.1", "first"), ("factory.log", "second")):
        assert f"LookupError: {word}" in (tmp_path / log).read_text()
        assert "in curated_corpus\n" in (tmp_path / log).read_text()


def test_a_run_that_was_started_without_standard_streams_leaves_its_words_in_the_log(
    fail, tmp_path: Path
) -> None:
    assert fail("run", "word", within=["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-']).returncode == 1
    assert "LookupError: word" in (tmp_path / "factory.log").read_text()


def test_debug_shows_the_traceback_of_the_stage(fail) -> None:
    ended = fail("--debug", "run", "first")
    assert ended.returncode == 1
    assert "in curated_corpus\n" in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_what_is_free(fail, tmp_path: Path) -> None:
    ended = fail("run", "full")
    assert ended.returncode == 1
    assert "error: database or disk is full; free now: " in ended.stderr
    assert f" GB in {tmp_path}, " in ended.stderr
    assert "Make room: the same command goes on (details: " in ended.stderr
    assert "Traceback" not in ended.stderr


SERVING = """
from orchestration import servers
from vipolyqwen_core.__main__ import main

servers.serve = lambda *_: print("served")
main()
"""


@pytest.mark.parametrize(
    ("options", "time_zone", "reason"),
    [
        (["--sources", "nope.yaml"], "UTC", "nope.yaml does not exist"),
        (["--recipe", "nope"], "UTC", "unknown recipe 'nope'"),
        ([], "Hanoi", "expected a name like Asia/Ho_Chi_Minh, got 'Hanoi'"),
        ([], "UTC", ""),
    ],
)
def test_the_ui_says_what_keeps_dagster_from_running_anything_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], time_zone: str, reason: str
) -> None:
    monkeypatch.setenv("VIPOLYQWEN_TIME_ZONE", time_zone)
    command = [sys.executable, "-c", SERVING, "--home", str(tmp_path), "ui", *options]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.endswith("served\n")
    assert ("Dagster can run nothing until this is mended: " in told) == bool(reason)
    assert reason in told
