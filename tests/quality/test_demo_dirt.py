"""Curation finds exactly the dirt that the built-in corpus states, on exactly the lines it states."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from quality.curate import curate
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER
from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.corpus.demo.files import SOURCE_FILES
from vipolyqwen_core.corpus.manifest import load_manifest
from vipolyqwen_core.corpus.text import normalise_text
from vipolyqwen_core.workspace import Workspace

SCALE = 0.08
SOURCES = [source.name for source in SOURCE_FILES]
STAGES = ("read", "curated")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    manifest = load_manifest(write_demo_corpus(workspace.demo_corpus, scale=SCALE))
    for source in manifest.sources:
        curate(source, CurationSettings(), workspace)
    return workspace


@pytest.fixture(scope="module")
def report(workspace: Workspace) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((workspace.demo_corpus / "dirt.json").read_text(encoding="utf-8"))
    return loaded


def stated(report: dict[str, Any], source: str) -> Iterator[tuple[str, str, int]]:
    for dirt in report["dirt"]:
        if dirt["source"] == source and dirt["stage"] in STAGES:
            yield from ((dirt["stage"], dirt["rule"], line) for line in dirt["lines"])


def column(folder: Path, table: str, *names: str) -> list[tuple[Any, ...]]:
    return pl.read_parquet(folder / f"{table}.parquet").select(names).rows()


@pytest.mark.parametrize("source", SOURCES)
def test_the_ledger_holds_the_stated_lines_and_no_others(
    source: str, workspace: Workspace, report: dict[str, Any]
) -> None:
    found = column(workspace.curated(source), "ledger", "stage", "rule", "line")
    assert sorted(found) == sorted(stated(report, source))


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_kept_are_the_clean_pairs_repaired(
    source: str, workspace: Workspace, report: dict[str, Any]
) -> None:
    clean = {
        (plain(f"{sample.question}\n{sample.details}"), plain(sample.answer))
        for file in SOURCE_FILES
        for sample in file.samples(0, SCALE)
    }
    changed = {
        line
        for dirt in report["dirt"]
        if dirt["source"] == source
        and (dirt["kind"] == "special_tokens" or dirt["stage"] not in (None, *STAGES))
        for line in dirt["lines"]
    }
    kept = column(workspace.curated(source), "pairs", "query", "target", "line")
    checked = [(plain(query), plain(target)) for query, target, line in kept if line not in changed]
    assert len(checked) >= 40
    assert set(checked) <= clean


def plain(text: str) -> str:
    return normalise_text(text.replace(IMAGE_PLACEHOLDER, ""))
