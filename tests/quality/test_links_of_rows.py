"""What links rows besides their texts: dialogues, groups of equal rows, benchmarks, similar pictures."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from assets.findings import no_leak
from tests.quality.conftest import RECIPE, everything, instruction, question, read, scene
from vipolyqwen_core.config import CurationSettings, Recipe, SplitSettings
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

EACH = Recipe(
    name="test",
    backbone="tiny",
    curation=CurationSettings(dialogue_turns="each"),
    split=SplitSettings(eval_share=0.3, max_component_share=1.0),
)


def dialogue(number: int) -> dict[str, Any]:
    """Three questions with their answers, none of which stands in another dialogue."""
    turns = [
        {"role": role, "content": f"{role} {number} {turn}"}
        for turn in range(3)
        for role in ("user", "assistant")
    ]
    return {"data_type": "instruction", "input": turns}


def test_pairs_of_a_dialogue_stand_on_one_side(workspace: Workspace, write_source, build) -> None:
    """A later pair has the question and the answer of an earlier one before its own."""
    build(write_source(map(dialogue, range(40))), recipe=EACH)
    rows = everything(workspace)
    assert (rows.height, rows["split"].n_unique()) == (120, 2)
    assert rows.group_by("line").agg(pl.col("component").n_unique())["component"].to_list() == [1] * 40
    assert no_leak(workspace, EACH).passed


def test_a_dialogue_on_both_sides_is_a_leak(workspace: Workspace, write_source, build) -> None:
    build(write_source(map(dialogue, range(40))), recipe=EACH)
    stray = read(workspace, "train").filter(pl.col("history").is_not_null()).head(1)
    evaluation = pl.concat([read(workspace, "eval"), stray.with_columns(component=pl.lit("another"))])
    evaluation.write_ipc(workspace.training_set / "eval.arrow")
    finding = no_leak(workspace, EACH)
    assert not finding.passed
    assert "1 dialogues stand on both sides" in finding.sentence


@pytest.mark.parametrize("last", [False, True])
def test_a_group_is_remembered_where_an_equal_row_of_another_source_has_none(
    workspace: Workspace, write_source, build, last: bool
) -> None:
    grouped = [instruction(i, group_id=f"g{i}") for i in range(60)]
    plain = [instruction(i) for i in range(60)]

    def build_both(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, str]:
        sources = [write_source(one, "grouped"), write_source([*two, instruction(999)], "plain")]
        build(*(reversed(sources) if last else sources))
        rows = everything(workspace).drop_nulls("group_id")
        return dict(rows.select("group_id", "split").iter_rows())

    first = build_both(grouped, plain)
    assert set(first.values()) == {"train", "eval"}
    build_both([*grouped, instruction(500)], plain)
    assert build_both([instruction(i + 1000, group_id=f"g{i}") for i in range(60)], []) == first


@pytest.mark.parametrize("last", [False, True])
def test_rows_that_evaluate_stay_wherever_a_benchmark_with_equal_rows_stands(
    workspace: Workspace, write_source, build, last: bool
) -> None:
    corpus = write_source([instruction(i) for i in range(100)])
    build(corpus)
    evaluating = read(workspace, "eval")["query"].to_list()
    numbers = [i for i in range(100) if instruction(i)["input"] in evaluating]
    benchmark = write_source([instruction(i) for i in numbers[:3]], "benchmark", off_limits=True)
    build(*((corpus, benchmark) if last else (benchmark, corpus)))
    assert read(workspace, "eval")["query"].to_list() == evaluating


def test_what_only_the_ledger_tells_is_no_other_data(workspace: Workspace, write_source, build) -> None:
    """A benchmark that overlaps nothing, a source of copies: nothing is to be trained anew."""
    corpus = write_source([instruction(i) for i in range(20)])
    first = build(corpus)
    copies = write_source([instruction(i) for i in range(5)], "copies")
    benchmark = write_source([instruction(i) for i in range(500, 505)], "benchmark", off_limits=True)
    second = build(corpus, copies, benchmark, recipe=RECIPE)
    assert (second.reused, second.data_version) == (False, first.data_version)
    assert sum(second.rejected.values()) == 10
    assert read_stage(workspace.training_set) == second


def test_an_evaluation_pair_that_says_something_else_is_other_data(
    workspace: Workspace, write_source, build
) -> None:
    records = [instruction(i) for i in range(40)]
    first = build(write_source(records))
    evaluating = read(workspace, "eval")["query"][0]
    keyed = [{**each, "positive_key": "k"} if each["input"] == evaluating else each for each in records]
    assert build(write_source(keyed)).data_version != first.data_version


def test_a_source_that_is_declared_a_benchmark_later_trains_no_more(
    workspace: Workspace, write_source, build
) -> None:
    corpus = write_source([instruction(i) for i in range(20)])
    other = [instruction(i) for i in range(50, 70)]
    build(corpus, write_source(other, "other"))
    assert "other" in read(workspace, "train")["source"]
    build(corpus, write_source(other, "other", off_limits=True))
    assert "other" not in read(workspace, "train")["source"]


def test_a_ledger_that_is_lost_is_written_again(workspace: Workspace, write_source, build) -> None:
    corpus = write_source([instruction(i) for i in range(20)])
    first = build(corpus)
    (workspace.training_set / "ledger.parquet").unlink()
    again = build(corpus)
    assert (again.reused, again.data_version) == (False, first.data_version)
    assert (workspace.training_set / "ledger.parquet").is_file()


def test_pictures_that_look_the_same_in_two_sources_link_their_rows(workspace, write_source, build) -> None:
    ours = write_source([question(number) for number in range(4)], "ours", pictures=range(4))
    shown = (3, 2, 1)
    records = [{**question(10 + number), "images": [f"{number}.jpg"]} for number in shown]
    theirs = write_source(records, "theirs")
    for number in shown:
        picture = scene(number)
        smaller = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        smaller.save(Path(str(theirs.image_root)) / f"{number}.jpg", quality=90)
    summary = build(ours, theirs)
    rows = everything(workspace).select("source", "line", "component").rows()
    of_row = {(source, line): component for source, line, component in rows}
    assert [of_row["theirs", line] for line in (1, 2, 3)] == [of_row["ours", line] for line in (4, 3, 2)]
    assert summary.details["near_picture_links"] == 3
