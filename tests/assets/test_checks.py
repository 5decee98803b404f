"""Checks: each asks its own question of the right tables, and only harm blocks."""

from dataclasses import replace
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
from vipolyqwen_core.config import SplitSettings
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace

QUESTIONS = {f"{asset}.{name}": question for asset, name, question, _ in MODEL_CHECKS}
OF_SOURCES = {f"{asset}.{name}": question for asset, name, question, _ in SOURCE_CHECKS}
ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    recipe = demo()
    recipe = replace(
        recipe,
        objective=replace(recipe.objective, positive_score=0.625),
        curation=replace(recipe.curation, min_linking_chars=77),
        split=SplitSettings(max_component_share=0.125),
    )
    run = SimpleNamespace(run_name="r1", output=tmp_path / "runs" / "r1")
    monkeypatch.setattr(Asked, "run", lambda _: (run, SimpleNamespace(metrics={"loss": 1.0})))
    return Asked(
        Workspace(tmp_path),
        recipe,
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


def test_each_question_is_put_to_the_tables_and_limits_of_the_recipe(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = asked.place.training_set, asked.run()[1]
    for check, name, arguments in (
        ("training_set.nothing_vanishes", "sources_are_accounted_for", (folder,)),
        ("training_set.both_splits", "both_splits", (folder, 0.625)),
        ("training_set.largest_component", "largest_component", (folder, asked.recipe.split)),
        ("training_set.no_leak", "no_leak", (folder, 77)),
        ("training_set.expectations", "training_set_expectations", (asked.place,)),
        ("hard_negatives.wrong_answers", "negatives_are_wrong", (asked.place, asked.recipe)),
        ("trained_model.finite", "losses_are_finite", (result,)),
        ("trained_model.not_collapsed", "not_collapsed", (result.metrics,)),
        ("embedding_export.complete", "export_is_complete", (asked.place,)),
    ):
        given = answered(monkeypatch, name)
        assert QUESTIONS[check](asked).sentence == name
        assert given == [arguments]


def test_each_question_about_a_source_is_put_to_its_own_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path)
    curated, tagged, validated = place.curated("a"), place.tagged("a"), place.validated("a")
    for stage in ("curated", "tagged"):
        monkeypatch.setattr(
            f"quality.stage_expectations.judge_{stage}", lambda *arguments, stage=stage: (stage, *arguments)
        )
    of_tagging = (curated / "pairs.parquet", tagged / "pairs.parquet", tagged / "ledger.parquet")
    for check, name, arguments in (
        ("curated_corpus.nothing_vanishes", "curation_loses_nothing", (curated,)),
        ("curated_corpus.has_pairs", "has_pairs", (curated,)),
        ("curated_corpus.expectations", "expectations_hold", (("curated", "a", place),)),
        ("tagged_corpus.nothing_vanishes", "stage_loses_nothing", ("tagged", *of_tagging)),
        ("tagged_corpus.expectations", "expectations_hold", (("tagged", "a", place),)),
        (
            "validated_corpus.nothing_vanishes",
            "validation_loses_nothing",
            (tagged / "pairs.parquet", validated),
        ),
        ("validated_corpus.suite_drift", "suite_holds", (validated, "drift")),
        ("validated_corpus.suite_task_ocr", "suite_holds", (validated, "task_ocr")),
    ):
        given = answered(monkeypatch, name)
        assert OF_SOURCES[check](place, "a").sentence == name
        assert given == [arguments]


def answered(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """What a finding is asked from now on; its answer is its name."""
    given: list[Any] = []

    def ask(*arguments: Any) -> Finding:
        given.append(arguments)
        return Finding(False, name)

    monkeypatch.setattr(findings, name, ask)
    return given


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
