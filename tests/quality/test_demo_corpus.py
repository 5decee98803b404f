"""The built-in corpus from files to training set: its dirt is found on exactly the lines that it states."""

import json
from html import escape as html_escape
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from quality import data_report
from quality.curate import curate
from quality.data_report import funnel, report_is_current, write_data_report
from quality.near_pictures import look_alike, thumbnail
from quality.rules import RULES
from quality.training_set import build_training_set
from quality.validate import validate
from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Split
from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.corpus.demo.files import SOURCE_FILES
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import load_manifest
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.corpus.text import normalise_text
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace

SCALE = 0.08
SOURCES = [source.name for source in SOURCE_FILES]


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    manifest = load_manifest(write_demo_corpus(workspace.demo_corpus, scale=SCALE))
    for source in manifest.sources:
        curate(source, CurationSettings(), workspace)
        tag(source, tiny_processing, tiny_backbone, workspace)
        assert validate(source, workspace).details["accepted"], source.name
    build_training_set(manifest, demo(), workspace)
    return workspace


@pytest.fixture(scope="module")
def dirt(workspace: Workspace) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(
        (workspace.demo_corpus / "dirt.json").read_text(encoding="utf-8")
    )["dirt"]
    return loaded


@pytest.fixture(scope="module")
def rows(workspace: Workspace) -> pl.DataFrame:
    return pl.concat([pl.read_ipc(workspace.training_set / f"{split.value}.arrow") for split in Split])


def stated(dirt: list[dict[str, Any]], *stages: str) -> list[tuple[str, str, str, int]]:
    found = [entry for entry in dirt if entry["stage"] in stages]
    return sorted(
        (entry["source"], entry["stage"], entry["rule"], line) for entry in found for line in entry["lines"]
    )


def column(folder: Path, table: str, *names: str) -> list[tuple[Any, ...]]:
    return pl.read_parquet(folder / f"{table}.parquet").select(names).rows()


def plain(text: str) -> str:
    return normalise_text(text.replace(IMAGE_PLACEHOLDER, ""))


def test_the_ledgers_hold_the_stated_lines_and_no_others(
    workspace: Workspace, dirt: list[dict[str, Any]]
) -> None:
    for folder, stages in (
        (workspace.curated("*"), ("read", "curated")),
        (workspace.tagged("*"), ("tagged",)),
        (workspace.training_set, ("training_set",)),
    ):
        found = column(folder, "ledger", "source", "stage", "rule", "line")
        assert sorted(found) == stated(dirt, *stages), stages
        assert found, stages


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_kept_are_the_clean_pairs_repaired(
    source: str, workspace: Workspace, dirt: list[dict[str, Any]]
) -> None:
    clean = {
        (plain(f"{sample.question}\n{sample.details}"), plain(sample.answer))
        for file in SOURCE_FILES
        for sample in file.samples(0, SCALE)
    }
    changed = {
        line
        for entry in dirt
        if entry["source"] == source and entry["kind"] == "special_tokens"
        for line in entry["lines"]
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


def test_special_tokens_that_are_spelled_out_stay_text(
    workspace: Workspace, dirt: list[dict[str, Any]]
) -> None:
    for entry in dirt:
        if entry["kind"] == "special_tokens":
            rows = column(workspace.tagged(entry["source"]), "pairs", "line", "query", "target")
            kept = {line: (query, target) for line, query, target in rows if line in entry["lines"]}
            assert sorted(kept) == entry["lines"]
            assert all(text.endswith(("|>", "<ocr>")) for texts in kept.values() for text in texts)


def test_crawled_copies_look_like_their_originals(workspace: Workspace, dirt: list[dict[str, Any]]) -> None:
    (entry,) = (each for each in dirt if each["outcome"] == "linked")
    pairs = dict(column(workspace.tagged(entry["source"]), "pairs", "line", "query_images"))
    summary = read_stage(workspace.curated(entry["source"]))
    assert summary is not None
    store = ImageStore(**summary.details["images"])
    ids = store.table(["image_id"])["image_id"].to_pylist()
    for line, original in zip(entry["lines"], entry["originals"], strict=True):
        copied, first = pairs[line], pairs[original]
        assert copied != first
        one, other = store.read([ids.index(copied[0]), ids.index(first[0])])
        assert look_alike(thumbnail(one), thumbnail(other))


def test_validation_rejects_nothing_that_earlier_stages_passed(workspace: Workspace) -> None:
    ledgers = list(workspace.validated("x").parent.glob("*/*/ledger.parquet"))
    assert len(ledgers) == len(list(workspace.validated("x").parent.iterdir()))
    assert pl.read_parquet(ledgers).is_empty()


def test_linked_dirt_shares_a_component(rows: pl.DataFrame, dirt: list[dict[str, Any]]) -> None:
    linked = [entry for entry in dirt if entry["outcome"] == "linked"]
    assert linked
    components = {(s, line): c for s, line, c in rows.select("source", "line", "component").rows()}
    for entry in linked:
        for line, original in zip(entry["lines"], entry["originals"], strict=True):
            assert components[entry["source"], line] == components[entry["source"], original]


def test_no_template_is_filled_on_both_sides(rows: pl.DataFrame) -> None:
    assert set(rows["split"]) == {"train", "eval"}
    for column in ("component", "group_id"):
        crossing = rows.drop_nulls(column).group_by(column).agg(pl.col("split").n_unique())
        assert crossing["split"].max() == 1


def test_the_data_report_shows_funnel_rejects_and_pictures(workspace: Workspace, tmp_path: Path) -> None:
    html = write_data_report(workspace, tmp_path / "report.html").read_text(encoding="utf-8")
    for source in load_manifest(workspace.demo_corpus / "manifest.yaml").names:
        assert source in html
    for rule in ("near_duplicate", "truncated_image", "too_many_placeholders"):
        assert f"<td>{rule}" in html
        assert html_escape(RULES[rule]) in html
    assert html.count("data:image/jpeg;base64,") >= 9
    assert html.count("<svg") == 4
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_a_report_is_current_until_code_or_a_stage_changes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    assert not report_is_current(workspace, path)
    write_data_report(workspace, path)
    assert report_is_current(workspace, path)
    stage = next(workspace.validated("demo_ocr").glob("*/stage.json"))
    before = stage.read_text(encoding="utf-8")
    stage.write_text(before.replace("seconds", "Seconds"), encoding="utf-8")  # judged once more
    assert not report_is_current(workspace, path)
    stage.write_text(before, encoding="utf-8")
    assert report_is_current(workspace, path)
    (rules,) = (file for file in data_report.REPORT_CODE if file.name == "rules.py")
    changed = tmp_path / "rules.py"
    changed.write_text(rules.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    code = tuple(changed if file == rules else file for file in data_report.REPORT_CODE)
    monkeypatch.setattr(data_report, "REPORT_CODE", code)
    assert not report_is_current(workspace, path)


def test_what_a_report_prints_is_of_files_that_it_depends_on() -> None:
    names = {file.name for file in data_report.REPORT_CODE}
    assert {"rules.py", "text_changes.py", "report_samples.py", "language.py", "plots.py"} <= names
    assert data_report.TEMPLATE in names


def test_the_funnel_narrows(workspace: Workspace) -> None:
    summary = read_stage(workspace.training_set)
    assert summary is not None
    for row in funnel(workspace, summary):
        assert row.read >= row.curated >= row.tagged >= row.validated >= row.train + row.eval > 0


def test_a_report_without_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training set"):
        write_data_report(Workspace(tmp_path), tmp_path / "report.html")
