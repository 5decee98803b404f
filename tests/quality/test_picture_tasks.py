"""With `one_task_per_picture` a picture trains for one task; nothing vanishes, and the split stays."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from quality.assignments import read_assignments
from quality.picture_tasks import PICTURE_OF_OTHER_TASK, keep_pictures_apart
from tests.quality.conftest import RECIPE, everything, instruction, question, read
from vipolyqwen_core.config import Recipe

APART = replace(RECIPE, split=replace(RECIPE.split, one_task_per_picture=True))


def asked(task: str, number: int, pictures: list[int], **more: Any) -> dict[str, Any]:
    """A question of a task on pictures."""
    files = [f"{picture}.png" for picture in pictures]
    text = {"question" if task == "ocr" else "input": f"Câu hỏi {task} {number}?"}
    return {**text, "data_type": task, "images": files, "answer": f"Đáp {task} {number}", **more}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Two tasks on each of 20 pictures, one on 5 others, rows with several pictures, and texts."""
    shared = [asked(task, number, [number]) for number in range(20) for task in ("ocr", "vqa_single")]
    several = [asked("vqa_multi", number, [number, number + 25]) for number in range(6)]
    wrong = [{"text": "<image>", "images": ["24.png"]}]
    return [
        *shared,
        *(question(number) for number in range(20, 25)),
        *several,
        asked("ocr", 99, [31], negatives=wrong),
        *(instruction(number) for number in range(10)),
    ]


def trained(rows: pl.DataFrame) -> set[tuple[str, str]]:
    """Each picture with each task that it trains for."""
    sides = [rows.select("task", picture=f"{side}_images").explode("picture") for side in ("query", "target")]
    wrong = rows.select("task", "negatives").explode("negatives")
    pictures = wrong.select("task", picture=pl.col("negatives").struct.field("images")).explode("picture")
    return set(pl.concat([*sides, pictures]).drop_nulls().rows())


def ledger(workspace) -> pl.DataFrame:
    return pl.read_parquet(workspace.training_set / "ledger.parquet")


def test_a_picture_trains_for_one_task_and_what_leaves_stands_in_the_ledger(
    workspace, write_source, build, records
) -> None:
    source = write_source(records, pictures=range(32))
    before = build(source)
    plain, evaluating = read(workspace, "train"), read(workspace, "eval")
    assert len(trained(plain)) > len({picture for _, picture in trained(plain)})
    assert before.rejected == {}
    summary = build(source, recipe=APART)
    rows = read(workspace, "train")
    found = trained(rows)
    assert len(found) == len({picture for _, picture in found})
    assert {picture for _, picture in found} <= {picture for _, picture in trained(plain)}
    assert read(workspace, "eval").equals(evaluating)
    left = ledger(workspace)
    assert set(left["rule"]) == {"picture_of_other_task"}
    assert summary.rejected == {"picture_of_other_task": left.height}
    assert sorted([*rows["sample_id"], *left["sample_id"]]) == sorted(plain["sample_id"])
    assert summary.pairs_in == summary.pairs_out + left.height == before.pairs_out
    # each shared picture went to one of its tasks, and chance has given some to either
    kept = rows.filter(pl.col("task").is_in(["ocr", "vqa_single"]))["task"].value_counts()
    assert kept.height == 2
    assert set(plain.filter(task="instr")["sample_id"]) <= set(rows["sample_id"])


def test_pictures_of_each_side_and_of_hard_negatives_count_and_those_of_evaluation_do_not() -> None:
    tasks = pl.Enum(["ocr", "vqa_single"])
    rows: dict[str, list[Any]] = {
        "task": [],
        "query_images": [],
        "target_images": [],
        "negatives": [],
        "split": [],
    }
    for picture in range(8):
        name = f"{picture:016x}" * 2
        for place, task in enumerate(tasks.categories):
            wrong = [{"images": None}, {"images": [name]}, {"images": []}]
            # the second task has it on its query, its target, a hard negative, or in evaluation alone
            kind = "query" if place == 0 else ("query", "target", "negatives", "eval")[picture % 4]
            rows["task"].append(task)
            rows["query_images"].append([name] if kind in ("query", "eval") else None)
            rows["target_images"].append([name] if kind == "target" else None)
            rows["negatives"].append(wrong if kind == "negatives" else ([], None)[place])
            rows["split"].append("eval" if kind == "eval" else "train")
    images = pl.List(pl.String)
    schema = {"task": tasks, "query_images": images, "target_images": images, "split": pl.String}
    schema["negatives"] = pl.List(pl.Struct({"images": images}))
    table = pl.DataFrame(rows, schema_overrides=schema).with_row_index("row")
    rule = pl.lit(None, dtype=pl.Enum([PICTURE_OF_OTHER_TASK]))
    found = keep_pictures_apart(table.lazy(), table.select("row", "task", "split", rule=rule), seed=0)
    stays = found["split"].is_not_null().to_list()
    for picture in range(8):
        both = stays[2 * picture : 2 * picture + 2]
        assert sum(both) == (2 if picture % 4 == 3 else 1), picture
    assert found.filter(pl.col("split").is_null())["rule"].to_list() == [PICTURE_OF_OTHER_TASK] * 6


def test_a_row_stays_only_if_all_of_its_pictures_went_to_its_task(
    workspace, write_source, build, records
) -> None:
    source = write_source(records, pictures=range(32))
    build(source)
    plain = read(workspace, "train")
    build(source, recipe=APART)
    rows = read(workspace, "train")
    owners = {picture: task for task, picture in trained(rows)}
    left = plain.join(rows, on="sample_id", how="anti")
    for row in left.to_dicts():
        # a picture that no row of its task has any more may have no owner
        others = [owners.get(picture) for picture in row["query_images"]]
        assert row["negatives"] or any(owner != row["task"] for owner in others), row


def test_a_row_that_left_comes_back_on_its_side(workspace, write_source, build, records) -> None:
    source = write_source(records, pictures=range(32))
    build(source, recipe=APART)
    left = set(ledger(workspace)["sample_id"])
    assert left
    remembered = read_assignments(workspace.assignments)
    assert remembered.height == len(records)
    build(source)
    assert read_assignments(workspace.assignments).equals(remembered)
    sides = dict(everything(workspace).select("sample_id", "split").rows())
    assert {sides[sample] for sample in left} == {"train"}


def test_the_seed_chooses_and_the_order_of_rows_does_not(workspace, write_source, build, records) -> None:
    def kept(order: int, recipe: Recipe) -> set[str]:
        build(write_source(records[::order], pictures=range(32)), recipe=recipe)
        return set(read(workspace, "train")["sample_id"])

    once = kept(1, APART)
    assert kept(-1, APART) == once
    other = replace(APART, split=replace(APART.split, seed=1))  # sides are remembered
    assert kept(1, other) != once
