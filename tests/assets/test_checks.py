"""Checks: each asks its own question of the right tables, and only harm blocks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from assets import checks, findings
from assets.checks import MODEL_CHECKS, SOURCE_CHECKS, Asked, report
from assets.findings import Finding
from assets.registry import Version
from assets.resources import ManifestResource, MlflowResource
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace

QUESTIONS = {f"{asset}.{name}": question for asset, name, question, _ in MODEL_CHECKS}
OF_SOURCES = {f"{asset}.{name}": question for asset, name, question in SOURCE_CHECKS}
ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    run = SimpleNamespace(run_name="r1", output=tmp_path / "runs" / "r1")
    metrics = {"loss": 1.0, "collapse/deviation": 0.05}
    result = SimpleNamespace(metrics=metrics, steps=100, refused_steps=0)
    monkeypatch.setattr(Asked, "run", lambda _: (run, result))
    return Asked(
        Workspace(tmp_path),
        demo(),
        ManifestResource(path=None, home=str(tmp_path)),
        MlflowResource(home=str(tmp_path)),
    )


@pytest.mark.parametrize(
    ("passed", "harmful", "asked_for", "severity"),
    [
        (True, True, ERROR, ERROR),
        (True, False, ERROR, ERROR),
        (False, True, ERROR, ERROR),
        (False, False, ERROR, WARN),
        (False, True, WARN, WARN),
    ],
)
def test_a_failure_that_harms_nothing_warns(
    passed: bool, harmful: bool, asked_for: dg.AssetCheckSeverity, severity: dg.AssetCheckSeverity
) -> None:
    facts = {"pairs": 3, "observed": [{"column": "score", "seen": 2}], "examples": {"a": ["x"]}}
    result = report(Finding(passed, "so it is", facts, harmful), asked_for)
    assert (result.passed, result.severity, result.description) == (passed, severity, "so it is")
    assert result.metadata["pairs"].value == 3
    assert result.metadata["observed"].value.splitlines() == [
        "| column | seen |", "| --- | --- |", "| score | 2 |",
    ]  # fmt: skip
    assert result.metadata["examples"].value == {"a": ["x"]}


def test_the_model_is_judged_by_the_result_of_its_run(asked: Asked) -> None:
    finite, spread = QUESTIONS["trained_model.finite"](asked), QUESTIONS["trained_model.not_collapsed"](asked)
    assert (finite.passed, finite.facts) == (True, {"loss": 1.0, "refused steps": 0})
    assert (spread.passed, spread.facts) == (False, {"collapse/deviation": 0.05})


@pytest.mark.parametrize("check", [name for name in OF_SOURCES if ".suite_" in name])
def test_a_check_of_a_suite_reports_the_lines_of_its_own(tmp_path: Path, check: str) -> None:
    lines = [
        {"check": name.split(".suite_")[1], "severity": "critical", "success": name != check}
        | {"expectation": "between", "column": "score", "observed": 2}
        for name in OF_SOURCES
        if ".suite_" in name
    ]
    facts: dict[str, Any] = {"pairs_in": 1, "pairs_out": 1, "rejected": {}}
    summary = StageSummary("validated", "", "", **facts, details={"expectations": lines})
    summary.write(Workspace(tmp_path).validated("a"))
    finding = OF_SOURCES[check](Workspace(tmp_path), "a")
    assert (finding.passed, finding.facts["expectations"]) == (False, 1)


def test_the_loss_is_read_from_the_lines_of_the_run(asked: Asked) -> None:
    output = asked.run()[0].output
    output.mkdir(parents=True)
    (output / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 3.0}\n')
    finding = QUESTIONS["trained_model.loss_fell"](asked)
    assert (finding.passed, finding.facts) == (False, {"first": 2.0, "last": 3.0})


def test_a_model_has_learned_where_no_condition_failed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def verdict(facts: tuple[str, ...], failures: tuple[str, ...]) -> Finding:
        judged = SimpleNamespace(learned=not failures, facts=facts, failures=failures)

        def read_evaluation(folder: Path) -> SimpleNamespace:
            read.append(folder)
            return SimpleNamespace(verdict=judged)

        monkeypatch.setattr("vipolyqwen_core.evaluation.results.read_evaluation", read_evaluation)
        return QUESTIONS["evaluation_report.learned"](asked)

    good, bad = verdict(("a", "b"), ()), verdict(("a",), ("b is low", "c is low"))
    assert (good.passed, good.sentence) == (True, "all 2 conditions hold")
    assert (bad.passed, bad.sentence) == (False, "b is low; c is low")
    assert set(read) == {asked.place.evaluations / "r1"}


def test_the_version_of_the_run_is_the_one_that_must_encode(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked.run()[0].output / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    versions = {("r1", model_digest(model)): Version(4, (), {})}
    monkeypatch.setattr(MlflowResource, "connect", lambda _: "client")
    monkeypatch.setattr(checks, "version_of_run", lambda client, *of_run: versions.get(of_run))
    monkeypatch.setattr(findings, "encodes_unit_vectors", lambda model: Finding(True, str(model)))
    (asked.place.models / "v4").mkdir(parents=True)
    (asked.place.models / "v4" / "config.json").touch()
    encodes = QUESTIONS["registered_model.encodes"]
    assert encodes(asked).sentence == str(asked.place.models / "v4")
    versions.clear()
    assert (encodes(asked).passed, encodes(asked).sentence) == (False, "the run has no registered version")
