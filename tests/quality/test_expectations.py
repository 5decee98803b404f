"""Suites: each defect that they are there for is found, with its severity; a sound table passes."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from great_expectations.expectations import (
    ExpectColumnMeanToBeBetween,
    ExpectColumnValuesToBeInSet,
    ExpectColumnValuesToNotBeNull,
)

from quality.curate import curate
from quality.drift import Profile, profile
from quality.expectations import (
    WARNING,
    Suite,
    balance_of_tasks,
    balance_suite,
    between,
    curated_suite,
    drift_suite,
    facts_suite,
    narrow_curated,
    narrow_pairs,
    pairs_suite,
    pictures_suite,
    tagged_suite,
    task_suite,
)
from quality.judge import judge
from quality.stage_expectations import judge_curated, judge_tagged
from quality.training_set import build_training_set
from quality.training_set_expectations import judge_training_set, training_facts, training_facts_suite
from quality.validate import validate
from tests.quality.conftest import instruction, question, scene
from vipolyqwen_core.config import CurationSettings, Recipe, SplitSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Manifest, Source
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.workspace import Workspace

SUITES = {
    "curated": curated_suite(),
    "tagged": tagged_suite(),
    "validated": pairs_suite(),
    **{f"task_{task.value}": task_suite(task, scored=True) for task in Task},
}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory, tiny_backbone, tiny_processing) -> tuple[Workspace, Source]:
    """A sound source of three tasks, tagged."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "images").mkdir()
    for number in range(8):
        scene(number).save(folder / "images" / f"{number}.png")
    pairs = [
        {"data_type": "contrastive_with_score", "input": instruction(i)["input"],
         "output": instruction(i)["output"], "similarity_score": i / 10} for i in range(100, 110)
    ]  # fmt: skip
    for pair, score in zip(pairs, range(10), strict=True):
        pair["similarity_score"] = score / 10
    records = [*(instruction(i) for i in range(24)), *(question(i) for i in range(8)), *pairs]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = Source(
        name="corpus",
        format=Format.OWNER_JSONL,
        paths=(str(folder / "data.jsonl"),),
        image_root=str(folder / "images"),
    )
    workspace = Workspace(folder / "home")
    curate(source, CurationSettings(), workspace)
    tag(source, tiny_processing, tiny_backbone, workspace)
    return workspace, source


def failures(lines: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(line["suite"], line["column"], line["severity"]) for line in lines if not line["success"]}


def test_a_sound_source_passes_at_each_stage(tagged) -> None:
    workspace, _ = tagged
    for lines in (judge_curated("corpus", workspace), judge_tagged("corpus", workspace)):
        assert len(lines) > 5
        assert failures(lines) == set()
    for stage in ("curated", "tagged"):
        assert (workspace.data_docs / "corpus" / stage / "index.html").is_file()


TURNS = pl.lit([{"role": role, "text": "x" * 200} for role in ["user", "assistant"] * 51])


@pytest.mark.parametrize(
    ("spoilt", "suites", "column", "severity"),
    [
        ({"sample_id": pl.lit("one")}, ("curated", "validated"), "sample_id", "critical"),
        ({"language": pl.lit("fr")}, ("curated", "validated"), "language", "critical"),
        ({"task": pl.lit("poem")}, ("curated", "validated"), "task", "critical"),
        ({"language": pl.lit(None)}, ("curated", "tagged", "validated"), "is_complete", "critical"),
        ({"score": pl.lit(math.nan)}, ("curated", "tagged", "validated"), "is_complete", "critical"),
        ({"query_tokens": pl.lit(None)}, ("tagged", "validated"), "is_complete", "critical"),
        ({"query": pl.lit(" ")}, ("curated", "validated"), "query_has_content", "critical"),
        ({"target": pl.lit(" ")}, ("curated", "validated"), "target_has_content", "critical"),
        ({"score": pl.lit(1.5, pl.Float32)}, ("curated", "validated"), "score", "critical"),
        ({"score": pl.lit(-0.5, pl.Float32)}, ("curated", "validated"), "score", "critical"),
        ({"target": pl.col("query")}, ("curated", "validated"), "answer_in_query", "critical"),
        ({"query": pl.lit("x " * 20_000)}, ("curated",), "query_chars", "warning"),
        ({"target": pl.lit("x " * 20_000)}, ("curated",), "target_chars", "warning"),
        ({"history": TURNS}, ("curated",), "turns", "warning"),
        ({"history": TURNS}, ("curated",), "query_chars", "warning"),
        ({"prefix": pl.lit("ocr")}, ("tagged", "validated"), "prefix_is_task", "critical"),
        ({"query_hash": pl.lit(0, pl.UInt64)}, ("tagged", "validated"), "has_hashes", "critical"),
        ({"target_hash": pl.lit(0, pl.UInt64)}, ("tagged", "validated"), "has_hashes", "critical"),
        ({"query": pl.lit("no picture here")}, ("tagged",), "placeholders_match", "warning"),
        ({"query": pl.lit("no picture here")}, ("validated",), "placeholders_match", "critical"),
        ({"query_tokens": pl.lit(0, pl.Int32)}, ("tagged",), "query_tokens", "warning"),
        ({"query_tokens": pl.lit(0, pl.Int32)}, ("validated",), "query_tokens", "critical"),
        ({"target_tokens": pl.lit(0, pl.Int32)}, ("tagged",), "target_tokens", "warning"),
        ({"target_tokens": pl.lit(0, pl.Int32)}, ("validated",), "target_tokens", "critical"),
        ({"target_images": pl.lit(["a"])}, ("validated",), "placeholders_match", "critical"),
        ({"query_images": pl.lit(None)}, ("task_vqa_single",), "query_pictures", "critical"),
        ({"query_images": pl.lit(["a"] * 17)}, ("task_vqa_single",), "query_pictures", "warning"),
        ({"target": pl.lit("x")}, ("task_instr",), "target_chars", "warning"),
        ({"score": pl.lit(None)}, ("task_text_pair",), "score", "warning"),
        ({"score": pl.lit(0.0)}, ("task_text_pair",), "score", "warning"),
    ],
)
def test_each_defect_is_found(
    tagged, spoilt: dict[str, pl.Expr], suites: tuple[str, ...], column: str, severity: str
) -> None:
    rows = pl.read_parquet(tagged[0].tagged("corpus") / "pairs.parquet")
    broken = rows.with_columns(**{name: value.cast(rows.schema[name]) for name, value in spoilt.items()})
    tables = {
        "curated": narrow_curated(broken.lazy()).collect(),
        "tagged": narrow_pairs(broken.lazy()).collect(),
        "pairs": narrow_pairs(broken.lazy()).collect(),
    }
    found = failures(judge([SUITES[name] for name in suites], tables, None))
    assert {(suite, column, severity) for suite in suites} <= found


def test_several_pictures_or_several_turns_make_a_question_one_of_several(tagged) -> None:
    rows = pl.read_parquet(tagged[0].tagged("corpus") / "pairs.parquet").filter(task="vqa_single")
    rows = rows.with_columns(task=pl.lit("vqa_multi"))
    turns = pl.lit([{"role": role, "text": "chào"} for role in ("user", "assistant")])
    suite = SUITES["task_vqa_multi"]
    for changed, found in (
        ({}, {("task_vqa_multi", "pictures_and_turns", "warning")}),
        ({"query_images": pl.concat_list("query_images", "query_images")}, set()),
        ({"history": turns.cast(rows.schema["history"])}, set()),
    ):
        table = narrow_pairs(rows.with_columns(**changed).lazy()).collect()
        assert failures(judge([suite], {suite.table: table}, None)) == found


def test_answers_that_are_all_alike_and_scores_of_one_kind_are_noticed() -> None:
    def rows(targets: list[int], scores: list[float | None]) -> pl.LazyFrame:
        frame = pl.DataFrame(
            {"target_hash": targets, "score": scores}, schema_overrides={"score": pl.Float32}
        )
        return frame.with_columns(task=pl.lit("text_pair")).lazy()

    def found(frame: pl.LazyFrame, positive_score: float = 0.5) -> set[str]:
        table = balance_of_tasks(frame, positive_score).collect()
        return {column for _, column, _ in failures(judge([balance_suite()], {"balance": table}, None))}

    assert found(rows(list(range(100)), [i / 100 for i in range(100)])) == set()
    assert found(rows([1] * 70 + list(range(30)), [None] * 100)) == {"top_target_share"}
    assert found(rows(list(range(50)), [0.5] * 50)) == {"positive_share", "score_deviation"}
    assert found(rows(list(range(50)), [0.5, 0.4] * 25)) == set()
    assert found(rows(list(range(50)), [0.5, 0.4] * 25), positive_score=0.7) == {"positive_share"}
    assert found(rows(list(range(50)), [0.7, 0.4] * 25), positive_score=0.7) == set()  # 0.7 as float32
    assert balance_of_tasks(rows([1] * 49, [1.0] * 49), 0.5).collect().is_empty()


def test_texts_of_a_corpus_are_no_html_in_the_pages(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    table = pl.DataFrame({"answer": ["Hà Nội", script, script]})
    expected = ExpectColumnValuesToBeInSet(column="answer", value_set=["Hà Nội"])
    (line,) = judge([Suite("answers", "pairs", [expected])], {"pairs": table}, tmp_path / "docs")
    assert script in line["observed"]
    (page,) = (tmp_path / "docs" / "validations").rglob("*.html")
    written = page.read_text(encoding="utf-8")
    assert script not in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written


def test_small_and_lost_pictures_are_noticed() -> None:
    table = pl.DataFrame(
        {
            "image_id": ["a", "a"], "width": [0, 30], "height": [20, 0], "aspect": [0.4, 300.0],
            "phash": ["0" * 16, "0"], "reencoded": [1, 1],
        }
    )  # fmt: skip
    found = failures(judge([pictures_suite()], {"pictures": table}, None))
    assert {(column, severity) for _, column, severity in found} >= {
        ("image_id", "critical"), ("width", "critical"), ("height", "critical"), ("phash", "critical"),
        ("width", "warning"), ("height", "warning"), ("aspect", "warning"), ("reencoded", "warning"),
    }  # fmt: skip


def test_every_kind_of_drift_is_noticed_and_a_steady_source_is_not() -> None:
    def looks(
        rows: int, language: str, task: str, chars: int, score: float | None, scored: float = 1.0
    ) -> pl.DataFrame:
        half, with_score = [chars] * rows, round(scored * rows)
        return pl.DataFrame(
            {"language": [language] * rows, "task": [task] * rows, "query_chars": half, "target_chars": half,
             "score": [score] * with_score + [None] * (rows - with_score)}
        )  # fmt: skip

    def found(now: pl.DataFrame) -> set[str]:
        moved = profile(now).drift(profile(looks(100, "vi", "instr", 40, 0.9)))
        return {
            column
            for _, column, _ in failures(judge([drift_suite()], {"facts": pl.DataFrame([moved])}, None))
        }

    assert found(looks(90, "vi", "instr", 42, 0.91)) == set()
    assert found(looks(40, "vi", "instr", 40, 0.9)) == {"pairs_ratio"}
    assert found(looks(100, "en", "instr", 40, 0.9)) == {"language_drift"}
    assert found(looks(100, "vi", "ocr", 40, 0.9)) == {"task_drift"}
    assert found(looks(100, "vi", "instr", 400, 0.9)) == {"length_ratio", "length_drift"}
    assert found(looks(100, "vi", "instr", 40, 0.2)) == {"score_drift"}
    assert found(looks(100, "vi", "instr", 40, None)) == {"score_drift", "scored_drift"}
    assert found(looks(100, "vi", "instr", 40, 0.9, scored=0.6)) == {"scored_drift"}
    assert found(looks(100, "vi", "instr", 40, 0.9, scored=0.8)) == set()


LIMITS: dict[str, tuple[float | None, float | None]] = {
    "rejected_share": (None, 0.2), "duplicate_share": (None, 0.2), "other_share": (None, 0.3),
    "unexpected_language_share": (None, 0.2), "pairs_ratio": (0.5, 10), "length_ratio": (1 / 1.5, 1.5),
    "language_drift": (None, 0.25), "task_drift": (None, 0.25), "length_drift": (None, 0.25),
    "score_drift": (None, 0.25), "scored_drift": (None, 0.25), "top_target_share": (None, 0.6),
    "positive_share": (0.05, 0.95), "score_deviation": (0.02, None), "largest_source_share": (None, 0.95),
    "eval_share": (None, 0.5), "tasks_without_evaluation": (0, 0), "split_distance_of_task": (None, 0.25),
    "split_distance_of_language": (None, 0.25), "split_distance_of_source": (None, 0.25),
}  # fmt: skip


def test_shares_at_their_limits_pass_and_those_beyond_warn() -> None:
    suites = (facts_suite(languages_declared=True), drift_suite(), balance_suite(), training_facts_suite(200))
    limited = [one for suite in suites for one in suite.expectations if one.column in LIMITS]
    assert {one.column for one in limited} == set(LIMITS)
    table = pl.DataFrame(
        {
            name: [value for end, step in zip(ends, (-0.001, 0.001), strict=True) if end is not None
                   for value in (end, end + step)] + ([None] * 2 if None in ends else [])
            for name, ends in LIMITS.items()
        },
        strict=False,
    )  # fmt: skip
    lines = judge([Suite("limits", "facts", limited)], {"facts": table}, None)
    assert {line["severity"] for line in lines} == {"warning"}
    for line in lines:
        num_ends = sum(end is not None for end in LIMITS[line["column"]])
        assert line["observed"].startswith(f"{num_ends} of {2 * num_ends} unexpected"), line
    assert {one.column for one in training_facts_suite(199).expectations}.isdisjoint(LIMITS)


def test_what_is_told_of_a_training_set_is_counted_on_its_side(tmp_path: Path) -> None:
    kinds = {"a": ("a", "vi", "instr"), "b": ("b", "other", "ocr")}
    for split, sources in (("train", "aaabbb"), ("eval", "aa")):
        rows = [kinds[source] for source in sources]
        frame = pl.DataFrame(rows, schema=["source", "language", "task"], orient="row")
        frame.write_ipc(tmp_path / f"{split}.arrow")
    pl.DataFrame({"row": range(5)}).write_parquet(tmp_path / "index.parquet")
    assert training_facts(tmp_path) == {
        "tables_have_schema": False, "index_has_schema": False, "index_rows_off": -1, "num_sources": 2,
        "largest_source_share": 0.625, "other_share": 0.375, "eval_share": 0.25,
        "tasks_without_evaluation": 1, "split_distance_of_task": 0.5, "split_distance_of_language": 0.5,
        "split_distance_of_source": 0.5,
    }  # fmt: skip


def test_a_profile_counts_shares_of_what_is_there_and_both_sides() -> None:
    rows = pl.DataFrame(
        {"language": ["vi", "vi", "vi", "en"], "task": ["text_pair"] * 4, "query_chars": [0, 1, 3, 2],
         "target_chars": [0, 2, 4, 2], "score": [None, 0.0, 0.95, 1.0]}
    )  # fmt: skip
    found = profile(rows)
    assert found == Profile(
        pairs=4,
        languages={"vi": 0.75, "en": 0.25},
        tasks={"text_pair": 1.0},
        mean_chars=3.5,
        mean_score=pytest.approx(0.65),
        lengths={"0": 0.25, "2": 0.5, "3": 0.25},
        scores={"0": pytest.approx(1 / 3), "9": pytest.approx(2 / 3)},
        scored_share=0.75,
    )
    first = Profile(pairs=2, languages=found.languages, tasks=found.tasks)  # it told of nothing else then
    assert found.drift(first) == {
        "pairs_ratio": 2.0, "length_ratio": 1.0,
        "language_drift": 0.0, "task_drift": 0.0, "length_drift": 0.0, "score_drift": 0.0,
        "scored_drift": 0.0,
    }  # fmt: skip


def test_what_was_seen_is_said_in_words_and_a_metric_that_raised_has_failed() -> None:
    table = pl.DataFrame(
        {"score": [0.5, None, 3.0], "text": ["a", "b", "c"], "turns": [1, 2, 3], "few": [None, None, 1]}
    )
    expected = [
        between("score", 0.0, 1.0, WARNING),
        between("few", 0.0, 1.0, WARNING),
        between("text", 0.0, 1.0, WARNING),
        ExpectColumnMeanToBeBetween(column="score", max_value=1.0, severity=WARNING),
        ExpectColumnMeanToBeBetween(column="turns", max_value=2.0, severity=WARNING),
        ExpectColumnValuesToNotBeNull(column="text"),
    ]
    lines = {
        (line["expectation"], line["column"]): (line["success"], line["observed"])
        for line in judge(
            [Suite("seen", "pairs", expected), Suite("absent", "rows", expected)], {"pairs": table}, None
        )
    }
    raised = lines.pop(("expect_column_values_to_be_between", "text"))
    assert lines == {
        ("expect_column_values_to_be_between", "score"): (
            False, "1 of 2 unexpected: 3; expected at least 0 and at most 1",
        ),
        ("expect_column_values_to_be_between", "few"): (True, "0 of 1 unexpected"),
        ("expect_column_mean_to_be_between", "score"): (False, "1.75; expected at most 1"),
        ("expect_column_mean_to_be_between", "turns"): (True, "2"),
        ("expect_column_values_to_not_be_null", "text"): (True, "0 of 3 unexpected"),
    }  # fmt: skip
    assert not raised[0]
    assert raised[1].startswith("the metric raised: ")


@pytest.fixture(scope="module")
def training(tagged) -> Workspace:
    workspace, source = tagged
    assert validate(source, workspace).details["accepted"]
    recipe = Recipe(name="test", backbone="tiny", split=SplitSettings(eval_share=0.3))
    build_training_set(Manifest(sources=(source,)), recipe, workspace)
    return workspace


def test_a_sound_training_set_passes(training: Workspace) -> None:
    lines = judge_training_set(training)
    assert len(lines) >= 14
    assert failures(lines) == set()
    assert (training.data_docs / "training_set" / "index.html").is_file()


@pytest.mark.parametrize(
    ("spoilt", "column"),
    [
        ({"component": pl.lit(None, pl.String)}, "component"),
        ({"split": pl.lit("test")}, "split"),
        ({"query_image_rows": pl.lit(None, pl.List(pl.Int64))}, "pictures_are_placed"),
        ({"target_image_rows": pl.lit([3], pl.List(pl.Int64))}, "pictures_are_placed"),
        ({"sample_id": pl.lit("one")}, "sample_id"),
        ({"target_tokens": pl.lit(None, pl.Int32)}, "is_complete"),
        ({"more": pl.lit(1)}, "tables_have_schema"),
    ],
)
def test_each_defect_of_a_training_set_is_found(
    training: Workspace, tmp_path: Path, spoilt: dict[str, pl.Expr], column: str
) -> None:
    place = Workspace(tmp_path)
    shutil.copytree(training.training_set, place.training_set)
    file = place.training_set / "train.arrow"
    pl.read_ipc(file).with_columns(**spoilt).write_ipc(file)
    if column == "tables_have_schema":
        other = place.training_set / "eval.arrow"
        pl.read_ipc(other).with_columns(**spoilt).write_ipc(other)
    found = failures(judge_training_set(place))
    assert (column, "critical") in {(name, severity) for _, name, severity in found}
