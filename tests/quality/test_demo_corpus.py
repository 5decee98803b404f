"""The built-in corpus from files to training set: all dirt is found where it is stated, nothing leaks."""

import json
from html import escape as html_escape
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from quality import data_report
from quality.curate import curate
from quality.data_report import funnel, report_is_current, write_data_report
from quality.rules import RULES
from quality.training_set import build_training_set
from quality.validate import validate
from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.corpus.manifest import load_manifest
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace

SCALE = 0.08


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


def stated(dirt: list[dict[str, Any]], stage: str) -> list[tuple[str, str, int]]:
    found = [entry for entry in dirt if entry["stage"] == stage]
    return sorted((entry["source"], entry["rule"], line) for entry in found for line in entry["lines"])


def test_tagging_rejects_the_stated_lines(workspace: Workspace, dirt: list[dict[str, Any]]) -> None:
    ledgers = pl.read_parquet(workspace.tagged("*") / "ledger.parquet")
    found = ledgers.select("source", "rule", "line").rows()
    assert sorted(found) == stated(dirt, "tagged")
    assert found


def test_the_training_set_rejects_the_stated_lines(workspace: Workspace, dirt: list[dict[str, Any]]) -> None:
    ledger = pl.read_parquet(workspace.training_set / "ledger.parquet")
    found = ledger.select("source", "rule", "line").rows()
    assert sorted(found) == stated(dirt, "training_set")
    assert found


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
