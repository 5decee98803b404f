"""Findings: what the blocking checks see in tables that are not as they should be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assets import findings
from vipolyqwen_core.config import MiningSettings, SplitSettings
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.training.result import TrainingResult
from vipolyqwen_core.workspace import Workspace

LONG = "a sentence that is long enough to link two rows"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def ledger(path: Path, *stages: str) -> None:
    pl.DataFrame(
        {"stage": stages, "source": ["letters"] * len(stages)},
        schema_overrides={"stage": pl.String, "source": pl.String},
    ).write_parquet(path)


def pairs(path: Path, rows: int) -> Path:
    pl.DataFrame({"sample_id": [str(row) for row in range(rows)]}).write_parquet(path)
    return path


def curated(place: Workspace, **changes: Any) -> Path:
    """A curated source: 10 records, 2 of them rejected; 9 pairs, 1 of them rejected."""
    facts: dict[str, Any] = {"pairs_in": 9, "pairs_out": 8, "rejected": {"empty_target": 1}}
    facts |= {"records": 10, "records_with_pairs": 8, "records_rejected": {"broken_json": 2}, **changes}
    folder = place.curated("letters")
    StageSummary(stage="curated", fingerprint="", data_version="", **facts).write(folder)
    pairs(folder / "pairs.parquet", 8)
    ledger(folder / "ledger.parquet", "read", "read", "curated")
    return folder


def test_both_equations_hold_for_a_whole_source(place: Workspace) -> None:
    curated(place)
    assert findings.curation_loses_nothing(place, "letters").passed


@pytest.mark.parametrize("fact", ["records", "records_with_pairs", "pairs_in"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_record_or_pair_that_vanished_or_came_of_nothing_is_noticed(
    place: Workspace, fact: str, by: int
) -> None:
    counts = {"records": 10, "records_with_pairs": 8, "pairs_in": 9}
    curated(place, **{fact: counts[fact] + by})
    assert not findings.curation_loses_nothing(place, "letters").passed


def test_tables_are_counted_and_summaries_are_not_believed(place: Workspace) -> None:
    pairs(curated(place) / "pairs.parquet", 7)
    finding = findings.curation_loses_nothing(place, "letters")
    assert not finding.passed
    assert "7 out" in finding.sentence


def test_a_source_without_pairs_says_which_rules_took_them(place: Workspace) -> None:
    folder = curated(place, rejected={"empty_target": 9})
    assert findings.has_pairs(place, "letters").sentence == "8 pairs"
    pairs(folder / "pairs.parquet", 0)
    finding = findings.has_pairs(place, "letters")
    assert not finding.passed
    assert finding.sentence == "no pair is left; in the ledger: 9 empty_target, 2 broken_json"


def test_the_suites_of_curated_and_of_tagged_pairs_are_judged_each_on_its_own(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("curated", "tagged"):

        def judge(*asked: object, stage: str = stage) -> list[dict[str, Any]]:
            assert asked == ("letters", place)
            return [line(stage, "critical", success=False)]

        monkeypatch.setattr(f"quality.stage_expectations.judge_{stage}", judge)
    for question, stage in (
        (findings.curated_expectations, "curated"),
        (findings.tagged_expectations, "tagged"),
    ):
        finding = question(place, "letters")
        assert finding.forbids
        assert finding.facts["observed"] == [line(stage, "critical", success=False)]


def test_a_stage_that_loses_a_pair_or_has_one_twice_is_noticed(place: Workspace) -> None:
    before, after = place.curated("letters"), place.tagged("letters")
    for folder, rows in ((before, 5), (after, 4)):
        folder.mkdir(parents=True)
        pairs(folder / "pairs.parquet", rows)
    ledger(after / "ledger.parquet")
    assert not findings.tagging_loses_nothing(place, "letters").passed
    ledger(after / "ledger.parquet", "tagged")
    assert findings.tagging_loses_nothing(place, "letters").passed
    pairs(after / "pairs.parquet", 5)
    assert not findings.tagging_loses_nothing(place, "letters").passed


def validated(place: Workspace, accepted: bool, pairs_out: int, rejected: int) -> findings.Finding:
    """The judgement of five tagged pairs; the summary claims other counts than the tables hold."""
    folder, before = place.validated("letters"), place.tagged("letters")
    version = folder / ("v1" if accepted else "candidate")
    version.mkdir(parents=True)
    before.mkdir(parents=True)
    facts: dict[str, Any] = {"pairs_in": 5, "pairs_out": 99, "rejected": {"too_long": 99}}
    facts["details"] = {"accepted": accepted}
    StageSummary(stage="validated", fingerprint="", data_version="v1", **facts).write(folder)
    pairs(before / "pairs.parquet", 5)
    pairs(version / "pairs.parquet", pairs_out)
    ledger(version / "ledger.parquet", *["validated"] * rejected)
    return findings.validation_loses_nothing(place, "letters")


@pytest.mark.parametrize("accepted", [True, False])
def test_a_version_is_counted_in_its_tables_accepted_or_not(tmp_path: Path, accepted: bool) -> None:
    assert validated(Workspace(tmp_path / "whole"), accepted, pairs_out=3, rejected=2).passed
    assert not validated(Workspace(tmp_path / "lossy"), accepted, pairs_out=3, rejected=1).passed


def line(check: str, severity: str, success: bool) -> dict[str, Any]:
    """What `judge` says of an expectation."""
    known = {"expectation": "between", "column": "score", "observed": 2}
    return {"check": check, "severity": severity, "success": success, **known}


def test_only_a_critical_expectation_that_fails_forbids_training(place: Workspace) -> None:
    lines = [
        line("sound", "critical", True),
        line("own_sound", "critical", False),
        line("warned", "critical", True),
        line("warned", "warning", False),
        line("broken", "warning", False),
        line("broken", "critical", False),
    ]
    facts: dict[str, Any] = {"pairs_in": 1, "pairs_out": 1, "rejected": {}}
    facts["details"] = {"expectations": lines}
    StageSummary(stage="validated", fingerprint="", data_version="", **facts).write(
        place.validated("letters")
    )
    found = {check: findings.suite_holds(place, "letters", check) for check in ("sound", "warned", "broken")}
    assert {check: finding.passed for check, finding in found.items()} == {
        "sound": True, "warned": False, "broken": False,
    }  # fmt: skip
    assert {check for check, finding in found.items() if finding.forbids} == {"broken"}


def accounted(place: Workspace, rejected: list[str], pairs_in: dict[str, int]) -> findings.Finding:
    """Two training pairs and an evaluation pair of letters, and a ledger with pairs of these sources."""
    folder = place.training_set
    folder.mkdir(parents=True)
    for name, rows in (("train", 2), ("eval", 1)):
        pl.DataFrame({"source": ["letters"] * rows}).write_ipc(folder / f"{name}.arrow")
    pl.DataFrame({"source": rejected}).write_parquet(folder / "ledger.parquet")
    sources = {"sources": {name: {"pairs_in": count} for name, count in pairs_in.items()}}
    facts: dict[str, Any] = {"pairs_in": 4, "pairs_out": 3, "rejected": {}, "details": sources}
    StageSummary(stage="training_set", fingerprint="", data_version="", **facts).write(folder)
    return findings.sources_are_accounted_for(place, demo())


def test_each_pair_of_a_source_is_in_the_split_or_in_the_ledger(tmp_path: Path) -> None:
    assert accounted(Workspace(tmp_path / "whole"), ["letters"], {"letters": 4}).passed
    for name, came in {"lost": {"letters": 5}, "twice": {"letters": 3}, "foreign": {}}.items():
        finding = accounted(Workspace(tmp_path / name), ["letters"], came)
        assert not finding.passed
        assert finding.sentence == f"letters: {came.get('letters', 0)} in, 4 found"


def leak(place: Workspace, train: dict[str, Any], evaluation: dict[str, Any]) -> findings.Finding:
    """Of a training set of one row on each side, where texts of 32 characters link."""
    clean = {
        "query": "q",
        "history": None,
        "target": "t",
        "query_images": [],
        "target_images": [],
        "source": "s",
        "line": 1,
        "group_id": None,
    }
    schema = {
        "query_images": pl.List(pl.String),
        "target_images": pl.List(pl.String),
        "history": pl.List(pl.Struct({"role": pl.String, "text": pl.String})),
        "group_id": pl.String,
    }
    for name, row in (("train", train), ("eval", evaluation)):
        frame = pl.DataFrame([{**clean, "file": name, "component": name, **row}], schema_overrides=schema)
        place.training_set.mkdir(parents=True, exist_ok=True)
        frame.write_ipc(place.training_set / f"{name}.arrow")
    recipe = demo()
    return findings.no_leak(place, replace(recipe, curation=replace(recipe.curation, min_linking_chars=32)))


def test_clean_sides_share_nothing(place: Workspace) -> None:
    """Short texts may stand on both sides: `yes` is the answer to many questions."""
    assert leak(place, {"target": "yes"}, {"target": "yes"}).passed


@pytest.mark.parametrize(
    ("shared", "kind"),
    [
        ({"component": "both"}, "components"),
        ({"file": "f", "history": [{"role": "user", "text": "before"}]}, "dialogues"),
        ({"query_images": ["picture"]}, "pictures"),
        ({"group_id": "page 3"}, "declared groups"),
        ({"target": LONG[:32]}, "long texts"),
    ],
)
def test_every_kind_of_leak_is_noticed(place: Workspace, shared: dict[str, Any], kind: str) -> None:
    finding = leak(place, shared, shared)
    assert not finding.passed
    assert finding.sentence == f"1 {kind} stand on both sides"


def test_a_leak_from_query_to_target_is_noticed(place: Workspace) -> None:
    assert not leak(place, {"query": LONG}, {"target": LONG}).passed


def test_a_long_text_beside_a_picture_is_no_leak(place: Workspace) -> None:
    """A prompt stands beside many pictures."""
    rows = [{"query": LONG, "query_images": [name]} for name in ("one", "two")]
    assert leak(place, *rows).passed


def test_a_text_that_is_long_by_its_empty_lines_alone_links_nothing_and_is_no_leak(place: Workspace) -> None:
    answer = f"{LONG[:15]}\n\n{LONG[:15]}"
    assert len(answer) == 32
    assert leak(place, {"target": answer}, {"target": answer}).passed
    case = {"query": LONG.upper()}, {"target": LONG.lower()}  # linked, so a leak
    assert not leak(place, *case).passed


def test_equal_groups_of_two_sources_are_different_groups(place: Workspace) -> None:
    assert leak(place, {"group_id": "1", "source": "a"}, {"group_id": "1", "source": "b"}).passed


def test_pairs_of_a_record_that_is_no_dialogue_are_no_leak(place: Workspace) -> None:
    """Of an adapter: they are not linked either."""
    assert leak(place, {"file": "f"}, {"file": "f"}).passed


def test_the_same_question_after_other_turns_is_another_query(place: Workspace) -> None:
    asked = "Please explain this once more, in simpler words."
    turns = [[{"role": "user", "text": text}] for text in ("What is rain?", "What is snow?")]
    rows = [{"query": asked, "history": history} for history in turns]
    assert leak(place, *rows).passed
    assert not leak(place, rows[0], rows[0]).passed


def test_a_component_that_swallows_the_corpus_is_noticed(place: Workspace) -> None:
    def found(train: list[str], evaluation: list[str], of: int | None = None) -> findings.Finding:
        place.training_set.mkdir(exist_ok=True)
        for name, components in (("train", train), ("eval", evaluation)):
            pl.DataFrame({"component": components}).write_ipc(place.training_set / f"{name}.arrow")
        details = {"largest_component": {} if of is None else {"of": of}}
        StageSummary("training_set", "", "", 1, 1, {}, details=details).write(place.training_set)
        return findings.largest_component(
            place, replace(demo(), split=SplitSettings(max_component_share=0.5))
        )

    rest = [str(row) for row in range(199)]
    assert not found(["one"] * 201, rest).passed
    assert not found(["one"] * 201, rest, of=401).passed
    assert found(["one"] * 201, rest, of=402).passed  # the others are linked to a benchmark, and left out
    assert found(["one"] * 199, rest).passed
    assert found(["one"] * 100, rest[:10]).passed  # of a small corpus it may hold nearly all


def sides(place: Workspace, train: int, evaluation: list[float | None]) -> findings.Finding:
    """A training set with so many training pairs, and evaluation pairs with these scores; 0.625 is right."""
    folder = place.training_set
    folder.mkdir(exist_ok=True)
    pairs = pl.DataFrame({"score": evaluation}, schema={"score": pl.Float32}).with_columns(
        task=pl.lit("text_pair"),
        language=pl.lit("vi"),
        component=pl.int_range(pl.len()).cast(pl.String),
        query_hash=pl.int_range(pl.len()).cast(pl.UInt64),
        target_hash=pl.int_range(pl.len()).cast(pl.UInt64) + 100,
        positive_hash=pl.lit(0, dtype=pl.UInt64),
    )
    pairs.write_ipc(folder / "eval.arrow")
    pl.DataFrame({"row": range(train)}).write_ipc(folder / "train.arrow")
    facts: dict[str, Any] = {"pairs_in": 60, "pairs_out": 0, "rejected": {"off_limits": 60}}
    StageSummary(stage="training_set", fingerprint="", data_version="", **facts).write(folder)
    recipe = demo()
    objective = replace(recipe.objective, positive_score=0.625)
    return findings.both_splits(place, replace(recipe, objective=objective))


def test_a_split_that_cannot_be_ranked_is_noticed_before_training(place: Workspace) -> None:
    assert sides(place, 3, [None, 0.1]).passed
    empty = sides(place, 0, [])
    assert empty.forbids
    assert "0 pairs in train, 0 pairs in eval; in the ledger: 60 off_limits" in empty.sentence
    assert sides(place, 0, [None, 0.1]).forbids
    for evaluation in ([None], [0.1, 0.2, 0.6]):
        nothing_to_rank = sides(place, 3, evaluation)
        assert nothing_to_rank.forbids
        assert "add data, or raise split.eval_share, which is that of new rows" in nothing_to_rank.sentence


@pytest.mark.parametrize(
    ("metrics", "passed"),
    [
        ({"collapse/deviation": 0.8, "collapse/effective_rank": 30.0}, True),
        ({"collapse/deviation": 0.8}, False),
        ({"collapse/deviation": 0.09, "collapse/effective_rank": 30.0}, False),
        ({"collapse/deviation": 0.01, "collapse/effective_rank": 30.0}, False),
        ({"collapse/deviation": 0.8, "collapse/effective_rank": 1.2}, False),
        ({}, False),
    ],
)
def test_vectors_that_are_all_alike_are_noticed(metrics: dict[str, float], passed: bool) -> None:
    assert findings.not_collapsed(metrics).passed is passed


@pytest.mark.parametrize(
    ("loss", "refused", "passed"), [(1.0, 5, True), (1.0, 6, False), (math.nan, 0, False), (None, 0, False)]
)
def test_a_loss_that_is_no_number_or_many_refused_steps_are_noticed(
    loss: float | None, refused: int, passed: bool
) -> None:
    metrics = {} if loss is None else {"loss": loss}
    result = TrainingResult(
        steps=100,
        pairs=800,
        seconds=1.0,
        pairs_per_second=800.0,
        metrics=metrics,
        refused_steps=refused,
        exported_step=100,
        mlflow_run_id="",
    )
    assert findings.losses_are_finite(result).passed is passed


def test_a_loss_that_does_not_fall_is_noticed() -> None:
    assert findings.loss_fell([{"loss": 2.0}, {"loss": 1.0}]).passed
    assert not findings.loss_fell([{"loss": 1.0}, {"loss": 2.0}]).passed
    assert not findings.loss_fell([{"loss": 1.0}, {"loss": 1.0}]).passed
    wavering = [2.0, 1.9, *[1.5] * 16, 2.1, 1.0]  # of twenty lines, the first and the last two
    assert findings.loss_fell([{"loss": loss} for loss in wavering]).facts == {"first": 1.95, "last": 1.55}
    only = findings.loss_fell([{"loss": 1.0}])  # of a run with fewer steps than `log_steps`
    assert only.passed
    assert "training.log_steps" in only.sentence


def mined(place: Workspace, negatives: list[list[int]]) -> findings.Finding:
    """Five training pairs, the fourth of another task, with hard negatives for some."""
    pairs = {
        "task": ["ocr", "ocr", "ocr", "instr", "ocr"],
        "query_hash": [1, 1, 3, 14, 7],
        "target_hash": [11, 12, 13, 14, 15],
        "positive_hash": [0, 5, 5, 0, 0],
    }
    place.training_set.mkdir(exist_ok=True)
    place.hard_negatives.mkdir(exist_ok=True)
    pl.DataFrame(pairs).write_ipc(place.training_set / "train.arrow")
    lists = pl.Series("negatives", negatives, pl.List(pl.Int64))
    pl.DataFrame([lists]).write_ipc(place.hard_negatives / "mined.arrow")
    return findings.negatives_are_wrong(place, replace(demo(), mining=MiningSettings(negatives_per_pair=1)))


@pytest.mark.parametrize(
    ("negatives", "what"),
    [
        ([[1], [], [], []], "1 mined negatives are right for the same query"),
        ([[], [2], [], []], "1 mined negatives are right by the same key"),
        ([[3], [], [], []], "1 mined negatives are of no row or another task"),
        ([[9], [], [], []], "1 mined negatives are of no row or another task"),
        ([[], [], [], [3]], "1 mined negatives are the query itself"),
    ],
)
def test_a_mined_negative_that_is_a_right_answer_is_noticed(
    tmp_path: Path, negatives: list[list[int]], what: str
) -> None:
    finding = mined(Workspace(tmp_path), negatives)
    assert finding.forbids
    assert what in finding.sentence


def test_mined_negatives_that_are_wrong_answers_pass(tmp_path: Path) -> None:
    finding = mined(Workspace(tmp_path), [[2, 4], [], [0], []])
    assert finding.passed, finding.sentence
    assert finding.facts["hard negatives"] == 3
    assert findings.negatives_are_wrong(Workspace(tmp_path / "none"), demo()).passed
