"""Curation and tagging find exactly the dirt that the built-in corpus states, on exactly those lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from quality.curate import curate
from quality.near_pictures import look_alike, thumbnail
from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER
from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.corpus.demo.files import SOURCE_FILES
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import load_manifest
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.corpus.text import normalise_text
from vipolyqwen_core.workspace import Workspace

SCALE = 0.08
SOURCES = [source.name for source in SOURCE_FILES]


@pytest.fixture(scope="module")
def workspace(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    manifest = load_manifest(write_demo_corpus(workspace.demo_corpus, scale=SCALE))
    for source in manifest.sources:
        curate(source, CurationSettings(), workspace)
        tag(source, tiny_processing, tiny_backbone, workspace)
    return workspace


@pytest.fixture(scope="module")
def report(workspace: Workspace) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((workspace.demo_corpus / "dirt.json").read_text(encoding="utf-8"))
    return loaded


def stated(report: dict[str, Any], source: str, *stages: str) -> Iterator[tuple[str, str, int]]:
    for dirt in report["dirt"]:
        if dirt["source"] == source and dirt["stage"] in stages:
            yield from ((dirt["stage"], dirt["rule"], line) for line in dirt["lines"])


def column(folder: Path, table: str, *names: str) -> list[tuple[Any, ...]]:
    return pl.read_parquet(folder / f"{table}.parquet").select(names).rows()


@pytest.mark.parametrize("source", SOURCES)
def test_the_ledger_holds_the_stated_lines_and_no_others(
    source: str, workspace: Workspace, report: dict[str, Any]
) -> None:
    found = column(workspace.curated(source), "ledger", "stage", "rule", "line")
    assert sorted(found) == sorted(stated(report, source, "read", "curated"))
    found = column(workspace.tagged(source), "ledger", "stage", "rule", "line")
    assert sorted(found) == sorted(stated(report, source, "tagged"))


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
        if dirt["source"] == source and dirt["kind"] == "special_tokens"
        for line in dirt["lines"]
    }
    kept = column(workspace.tagged(source), "pairs", "query", "target", "line")
    checked = [(plain(query), plain(target)) for query, target, line in kept if line not in changed]
    assert len(checked) >= 40
    assert set(checked) <= clean


def test_tagging_gives_every_row_as_many_placeholders_as_pictures(workspace: Workspace) -> None:
    for source in SOURCES:
        for query, images, history in column(
            workspace.tagged(source), "pairs", "query", "query_images", "history"
        ):
            texts = [query, *(turn["text"] for turn in history or [])]
            assert sum(text.count(IMAGE_PLACEHOLDER) for text in texts) == len(images)


def test_special_tokens_that_are_spelled_out_stay_text(workspace: Workspace, report: dict[str, Any]) -> None:
    for dirt in report["dirt"]:
        if dirt["kind"] == "special_tokens":
            rows = column(workspace.tagged(dirt["source"]), "pairs", "line", "query", "target")
            kept = {line: (query, target) for line, query, target in rows if line in dirt["lines"]}
            assert sorted(kept) == dirt["lines"]
            assert all(text.endswith(("|>", "<ocr>")) for texts in kept.values() for text in texts)


def test_crawled_copies_look_like_their_originals(workspace: Workspace, report: dict[str, Any]) -> None:
    (dirt,) = (entry for entry in report["dirt"] if entry["outcome"] == "linked")
    pairs = dict(column(workspace.tagged(dirt["source"]), "pairs", "line", "query_images"))
    summary = read_stage(workspace.curated(dirt["source"]))
    assert summary is not None
    store = ImageStore(**summary.details["images"])
    ids = store.table(["image_id"])["image_id"].to_pylist()
    for line, original in zip(dirt["lines"], dirt["originals"], strict=True):
        copied, first = pairs[line], pairs[original]
        assert copied != first
        one, other = store.read([ids.index(copied[0]), ids.index(first[0])])
        assert look_alike(thumbnail(one), thumbnail(other))


def plain(text: str) -> str:
    return normalise_text(text.replace(IMAGE_PLACEHOLDER, ""))
