"""Validation: critical failures block, warnings are recorded, an accepted version stays until the next."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from quality.accepted import accepted_folder, accepted_stage
from quality.built_in_suites import BUILT_IN
from quality.curate import curate
from quality.data_report import funnel, whole_ledger
from quality.drift import Profile, total_variation, unexpected_share
from quality.expectations import Suite
from quality.judge import judge
from quality.polars_tables import polars_schema
from quality.report_samples import rejected_samples
from quality.training_set import build_training_set
from quality.validate import built_in_suites, pictures_of, validate
from tests.quality.conftest import instruction, question, sentence
from tests.wrong_bytes import write_wrong_bytes
from vipolyqwen_core.config import CurationSettings, ProcessingSettings, Recipe
from vipolyqwen_core.contract import TAGGED
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Manifest, Source
from vipolyqwen_core.corpus.tables import StageSummary, read_stage
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.workspace import Workspace


@pytest.fixture
def through(workspace: Workspace, tiny_backbone: Path, tiny_processing: ProcessingSettings):
    """Curates, tags and validates a source."""

    def run(source: Source) -> StageSummary:
        curate(source, CurationSettings(), workspace)
        tag(source, tiny_processing, tiny_backbone, workspace)
        return validate(source, workspace)

    return run


def failures(summary: StageSummary) -> set[tuple[str, str]]:
    lines = summary.details["expectations"]
    return {(line["severity"], line["column"]) for line in lines if not line["success"]}


@pytest.mark.parametrize(("before", "left_out"), [(Profile(pairs=1), set()), (None, {"drift"})])
def test_each_suite_that_is_judged_has_a_check(
    write_source, before: Profile | None, left_out: set[str]
) -> None:
    suites = built_in_suites(write_source([]), {"pairs": pl.DataFrame({"score": [0.5]})}, before)
    names = [suite.check or suite.name for suite in suites]
    assert sorted(names) == sorted(set(BUILT_IN) - left_out)


def test_a_clean_source_is_accepted_with_all_its_rows(workspace, write_source, through) -> None:
    source = write_source(
        [instruction(i) for i in range(12)] + [question(i) for i in range(4)], pictures=range(4)
    )
    summary = through(source)
    assert summary.details["accepted"]
    assert failures(summary) == set()
    assert (summary.pairs_in, summary.pairs_out, summary.rejected) == (16, 16, {})
    folder = accepted_folder(workspace.validated("corpus"))
    assert folder == workspace.validated("corpus") / summary.data_version
    table = pl.read_parquet(folder / "pairs.parquet")
    assert table.schema == polars_schema(TAGGED)
    assert table.equals(pl.read_parquet(workspace.tagged("corpus") / "pairs.parquet"))
    docs = Path(summary.details["data_docs"])
    pages = re.findall(r'<li><a href="(validations/[^"]+)">', docs.read_text(encoding="utf-8"))
    assert len(pages) == 5
    assert all((docs.parent / page).is_file() for page in pages)
    assert {line["suite"] for line in summary.details["expectations"]} == {
        "validated", "task_instr", "task_vqa_single", "stages", "pictures",
    }  # fmt: skip
    assert validate(source, workspace).reused


def test_a_source_is_judged_by_the_positive_score_of_the_recipe(workspace, write_source, through) -> None:
    scored = {"data_type": "contrastive_with_score"}
    texts = [{"input": sentence(i), "output": sentence(i + 5000)} for i in range(60)]
    source = write_source(
        [{**scored, **text, "similarity_score": 0.1 + 0.6 * (i % 2)} for i, text in enumerate(texts)]
    )
    assert ("warning", "positive_share") not in failures(through(source))
    assert validate(source, workspace, positive_score=0.5).reused
    strict = validate(source, workspace, positive_score=0.9)
    assert ("warning", "positive_share") in failures(strict)
    assert not strict.reused


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_what_is_lost_or_cut_is_made_again(workspace: Workspace, write_source, through) -> None:
    through(write_source([question(i) for i in range(6)], pictures=range(6)))
    source = write_source([question(i) for i in range(5)], pictures=range(5))  # a second version of pictures
    before = through(source)
    tables = [path for path in workspace.home.glob("*/**/*.parquet") if path.stem in ("pairs", "ledger")]
    assert len(tables) >= 6  # curated, tagged, validated
    named = workspace.validated("corpus") / "accepted.json"

    def cut() -> None:
        for path in tables:
            path.write_bytes(path.read_bytes()[:100])

    def cut_ledger() -> None:
        path = workspace.validated("corpus") / before.data_version / "ledger.parquet"
        path.write_bytes(path.read_bytes()[:100])

    lost = (
        named,
        workspace.validated("corpus") / before.data_version / "stage.json",
        workspace.images("corpus"),
        workspace.data_docs,
    )
    for lose in (cut, cut_ledger, *(partial(remove, path) for path in lost)):
        lose()
        after = through(source)
        assert after.details["accepted"]
        assert (after.data_version, after.pairs_out) == (before.data_version, 5)
        assert Path(after.details["data_docs"]).is_file()
        folder = accepted_folder(workspace.validated("corpus"))
        assert folder == workspace.validated("corpus") / before.data_version
        summary = read_stage(folder)
        assert summary is not None
        store = ImageStore(**summary.details["images"])
        pictures = pl.read_parquet(folder / "pairs.parquet")["query_images"].explode()
        assert set(pictures) <= set(store.table(["image_id"])["image_id"].to_pylist())
        assert pictures.n_unique() == 5


def test_a_version_that_is_judged_once_more_leaves_the_one_before_it(
    workspace, write_source, through
) -> None:
    """A training set may be built of that one meanwhile."""
    first = through(write_source([instruction(i) for i in range(12)]))
    source = write_source([instruction(i) for i in range(13)])
    second = through(source)
    remove(workspace.data_docs)
    assert not validate(source, workspace).reused
    stand = {path.name for path in workspace.validated("corpus").iterdir() if path.is_dir()}
    assert stand == {first.data_version, second.data_version}


def test_pictures_that_were_moved_are_named_by_their_new_paths(workspace, write_source, through) -> None:
    source = write_source([question(i) for i in range(5)], pictures=range(5))
    before = through(source)
    records, root = Path(source.paths[0]), Path(source.image_root)
    (root / "y2026").mkdir()
    for picture in root.glob("*.png"):
        picture.rename(root / "y2026" / picture.name)
    records.write_text(re.sub(r"(\d+\.png)", r"y2026/\1", records.read_text()))
    after = through(source)
    assert after.data_version == before.data_version  # pairs name pictures by content
    store = ImageStore(**accepted_stage(workspace.validated("corpus")).details["images"])
    origins = store.table(["origin"])["origin"].to_pylist()
    assert sorted(origins) == [f"y2026/{i}.png" for i in range(5)]
    assert through(source).reused


def test_a_third_of_broken_rows_warns_and_goes_through(workspace, write_source, through) -> None:
    records = [instruction(i) for i in range(20)]
    assert failures(through(write_source(records))) == set()
    summary = through(write_source([*records, *["{broken"] * 10]))  # the same pairs
    assert summary.details["accepted"]
    assert failures(summary) == {("warning", "rejected_share")}


def test_equal_texts_with_a_low_score_warn_and_the_range_is_said(workspace, write_source, through) -> None:
    def scored(query: str, target: str, score: float) -> dict[str, object]:
        kind = "contrastive_with_score"
        return {"data_type": kind, "input": query, "output": target, "similarity_score": score}

    records = [scored(sentence(i), sentence(i + 50), 0.4) for i in range(8)]
    records += [scored(sentence(90), sentence(90), 1.0), scored(sentence(91), sentence(91) + " ", 0.8)]
    summary = through(write_source(records))
    (failed,) = [line for line in summary.details["expectations"] if not line["success"]]
    assert (failed["suite"], failed["column"]) == ("task_text_pair", "score_of_equals")
    assert failed["observed"] == "1 of 2 unexpected: 0.8; expected at least 0.99"


def test_a_source_without_pairs_is_blocked_and_the_accepted_version_stays(
    workspace, write_source, through
) -> None:
    first = through(write_source([instruction(i) for i in range(5)]))
    second = through(write_source([{**instruction(1), "output": ""}]))
    assert not second.details["accepted"]
    assert ("critical", "pairs") in failures(second)
    assert failures(read_stage(workspace.validated("corpus"))) == failures(second)
    assert accepted_stage(workspace.validated("corpus")).data_version == first.data_version
    third = through(write_source([instruction(i) for i in range(7)]))
    assert third.details["accepted"]
    versions = {path.name for path in workspace.validated("corpus").iterdir() if path.is_dir()}
    assert versions == {first.data_version, third.data_version}


def test_what_a_stage_lost_or_spoilt_blocks(
    workspace: Workspace, write_source, through, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_facts(suites: list[Suite], tables: dict[str, pl.DataFrame], docs: Path) -> list[dict[str, Any]]:
        return judge([suite for suite in suites if suite.table == "facts"], tables, None)

    monkeypatch.setattr("quality.validate.judge", judge_facts)
    source = write_source([question(i) for i in range(6)], pictures=range(6))
    through(source)
    curated, tagged = workspace.curated("corpus"), workspace.tagged("corpus")
    more, strange = pl.lit(1).alias("more"), pl.lit(["f" * 32]).alias("query_images")
    for column, folder, counted, spoil in (
        ("missing_records", curated, "records", None),
        ("missing_curated", curated, "pairs_in", None),
        ("missing_tagged", tagged, "pairs_in", None),
        ("missing_tagged", curated, "pairs_out", None),
        ("missing_validated", tagged, "pairs_out", None),
        ("curated_schema_is_right", curated, None, lambda rows: rows.with_columns(more)),
        ("tagged_schema_is_right", tagged, None, lambda rows: rows.with_columns(more)),
        ("is_sorted", tagged, None, lambda rows: rows.sort("line", descending=True)),
        ("missing_pictures", tagged, None, lambda rows: rows.with_columns(strange)),
    ):
        stage, table = folder / "stage.json", folder / "pairs.parquet"
        said, rows = stage.read_text(encoding="utf-8"), pl.read_parquet(table)
        told = {**json.loads(said), "data_version": column}
        if counted is not None:
            told[counted] += 1
        stage.write_text(json.dumps(told), encoding="utf-8")
        if spoil is not None:
            table.unlink()  # its content has another name in the accepted version
            spoil(rows).write_parquet(table)
        summary = validate(source, workspace)
        assert not summary.details["accepted"]
        assert ("critical", column) in failures(summary)
        stage.write_text(said, encoding="utf-8")
        rows.write_parquet(table)
    assert validate(source, workspace).details["accepted"]


def test_pictures_of_both_sides_and_of_hard_negatives_must_be_stored() -> None:
    schema = {name: dtype for name, dtype in polars_schema(TAGGED).items() if "images" in name}
    negatives = [{"text": "", "images": ["c", "a"]}, {"text": "sai", "images": None}]
    rows = pl.DataFrame(
        {"query_images": [["a"], None], "target_images": [["b"], None], "negatives": [negatives, None]},
        schema={**schema, "negatives": polars_schema(TAGGED)["negatives"]},
    )
    assert set(pictures_of(rows.lazy()).collect()["image_id"]) == {"a", "b", "c"}


def test_broken_rows_go_to_the_ledger(workspace, write_source, through) -> None:
    source = write_source([question(i) for i in range(6)], pictures=range(6))
    through(source)
    table = pl.read_parquet(workspace.tagged("corpus") / "pairs.parquet")
    bare = pl.when(pl.col("line") == 2).then(pl.lit("Gì?")).otherwise("query")
    tokens = {
        f"{side}_tokens": pl.when(pl.col("line") == line).then(0).otherwise(f"{side}_tokens").cast(pl.Int32)
        for side, line in (("query", 3), ("target", 4))
    }
    table.with_columns(query=bare, **tokens).write_parquet(workspace.tagged("corpus") / "pairs.parquet")
    stage = workspace.tagged("corpus") / "stage.json"
    text = stage.read_text(encoding="utf-8")
    stage.write_text(text.replace('"data_version": "', '"data_version": "x'), encoding="utf-8")
    summary = validate(source, workspace)
    assert summary.details["accepted"]
    assert summary.rejected == {"nothing_to_encode": 2, "placeholder_mismatch": 1}
    assert summary.pairs_out == 3


def test_a_source_that_changed_its_language_warns(workspace, write_source, through) -> None:
    through(write_source([instruction(i) for i in range(20)], languages=("vi",)))
    english = [
        {
            "data_type": "instruction",
            "input": f"What is the story of number {i}?",
            "output": f"It is {i} years.",
        }
        for i in range(20)
    ]
    summary = through(write_source(english, languages=("vi",)))
    assert summary.details["accepted"]
    assert {("warning", "language_drift"), ("warning", "unexpected_language_share")} <= failures(summary)
    assert failures(through(write_source(english, languages=("en",)))) == set()


def test_a_source_that_was_not_tagged_is_refused(workspace, write_source) -> None:
    with pytest.raises(ValueError, match="'corpus' has not been curated and tagged"):
        validate(write_source([instruction(1)]), workspace)


def test_a_table_with_wrong_bytes_is_named(workspace, write_source, tiny_backbone, tiny_processing) -> None:
    source = write_source([instruction(number) for number in range(20)])
    curate(source, CurationSettings(), workspace)
    tag(source, tiny_processing, tiny_backbone, workspace)
    table = workspace.tagged("corpus") / "pairs.parquet"
    write_wrong_bytes(table, "target")
    with pytest.raises(ValueError, match=rf"{table} is damaged .* delete it"):
        validate(source, workspace)


def test_texts_without_words_are_in_no_unexpected_language() -> None:
    assert unexpected_share({"vi": 0.5, "other": 0.3, "zh": 0.2}, ("vi", "en")) == 0.2


def test_total_variation_is_the_share_that_moved() -> None:
    assert total_variation({"vi": 1.0}, {"vi": 1.0}) == 0.0
    assert total_variation({"vi": 1.0}, {"en": 1.0}) == 1.0
    assert total_variation({"vi": 0.5, "en": 0.5}, {"vi": 0.75, "zh": 0.25}) == 0.5


def test_what_became_of_the_accepted_version_is_kept_while_later_ones_are_refused(
    workspace, write_source, through, monkeypatch
) -> None:
    source = write_source([*(instruction(i) for i in range(12)), "{", instruction(0)])
    first = through(source)
    assert first.details["accepted"]
    recipe = Recipe(name="t", backbone="tiny")
    summary = build_training_set(Manifest(sources=(source,)), recipe, workspace)
    before = funnel(workspace, summary)
    assert (before[0].records, before[0].unread, before[0].curated) == (14, 1, 12)
    monkeypatch.setattr("quality.validate.judge", lambda *_: [refusal])
    refusal = {"suite": "s", "expectation": "e", "column": "", "severity": "critical", "observed": ""}
    refusal["success"] = False  # type: ignore[assignment]
    through(write_source([instruction(40), "{", "{"]))
    again = build_training_set(Manifest(sources=(source,)), recipe, workspace)
    assert again.reused
    assert funnel(workspace, again) == before
    ledger = whole_ledger(workspace, summary).collect()
    assert sorted(ledger.select("line", "rule").rows()) == [(13, "broken_json"), (14, "exact_duplicate")]
    (shown,) = rejected_samples(ledger.lazy(), workspace)
    assert (shown["line"], shown["texts"]) == (13, {})
    monkeypatch.undo()
    assert through(write_source([instruction(i) for i in range(40, 60)])).details["accepted"]
    assert funnel(workspace, summary) == before  # a training set holds what it was built of
    assert whole_ledger(workspace, summary).collect().equals(ledger)
