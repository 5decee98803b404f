"""Corpora that change at random from version to version: nothing that trained once ever evaluates."""

import random
from collections.abc import Callable
from typing import Any, Final

import polars as pl
import pytest

from tests.quality.conftest import everything, sentence
from vipolyqwen_core.config import Recipe, SplitSettings

Records = list[dict[str, Any]]
RECIPE: Final = Recipe(
    name="test", backbone="tiny", split=SplitSettings(eval_share=0.3, max_component_share=1.0)
)
PICTURES: Final = 40
GROUPS: Final = 25
VERSIONS: Final = 5


def made_text(chance: random.Random) -> str:
    """Of few sentences, long enough to link, or short."""
    if chance.random() < 0.6:
        return sentence(chance.randrange(60), chance.choice([10, 14, 25]))
    return f"{chance.choice(['Có', 'Không', 'Đỏ', 'Một', 'Con mèo'])} {chance.randrange(40)}"


def made_record(chance: random.Random) -> dict[str, Any]:
    record: dict[str, Any] = {"input": made_text(chance), "output": made_text(chance)}
    kind = chance.choice(["vqa_single", "instruction", "contrastive_with_score"])
    if kind == "vqa_single":
        record["images"] = [f"{chance.randrange(PICTURES)}.png"]
    if kind == "contrastive_with_score":
        record["similarity_score"] = chance.choice([0.1, 0.5, 0.8, 1.0])
    if chance.random() < 0.25:
        record["group_id"] = f"g{chance.randrange(GROUPS)}"
    return {"data_type": kind, **record}


def next_version(chance: random.Random, records: Records) -> Records:
    """Rows come, go, move, are corrected, scored anew, lengthened, copied."""
    changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "input": lambda _: {"input": made_text(chance)},
        "output": lambda _: {"output": made_text(chance)},
        "similarity_score": lambda _: {"similarity_score": chance.choice([0.2, 0.9])},
        "images": lambda _: {"images": [f"{chance.randrange(PICTURES)}.png"]},
        "longer": lambda record: {"input": record["input"] + " vâng"},
    }
    for _ in range(chance.randrange(1, 5)):
        some = {number for number in range(len(records)) if chance.random() < chance.choice([0.1, 0.5])}
        match change := chance.choice(["come", "go", "move", "copy", *changes]):
            case "come":
                records = records + [made_record(chance) for _ in range(20)]
            case "go":
                records = [record for number, record in enumerate(records) if number not in some]
            case "move":
                records = chance.sample(records, len(records))
            case "copy":
                records = records + [records[number] for number in sorted(some)]
            case _:
                records = [
                    {**record, **changes[change](record)}
                    if number in some and (change in record or change == "longer")
                    else record
                    for number, record in enumerate(records)
                ]
    return records or [made_record(chance)]


def what_links(row: dict[str, Any]) -> set[object]:
    """What must not stand on both sides: what the pair says, its pictures, its group, its long texts."""
    texts = {row[side].lower() for side in ("query", "target") if not row[f"{side}_images"]}
    return {
        (row["query_hash"], row["target_hash"]),
        *(image for side in ("query", "target") for image in row[f"{side}_images"] or ()),
        *((row["source"], group) for group in [row["group_id"]] if group is not None),
        *(text for text in texts if len(text) > 40),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_what_trained_never_evaluates_in_a_later_version(workspace, write_source, build, seed: int) -> None:
    chance = random.Random(seed)
    versions: list[dict[str, Records]] = [
        {name: [made_record(chance) for _ in range(40)] for name in ("one", "two")}
    ]
    trained: set[object] = set()
    for _ in range(VERSIONS):
        sources = [write_source(rows, name, pictures=range(PICTURES)) for name, rows in versions[-1].items()]
        summary = build(*sources, recipe=RECIPE)
        rows = everything(workspace)
        for row in rows.filter(pl.col("split") == "train").iter_rows(named=True):
            trained |= what_links(row)
        for row in rows.filter(pl.col("split") == "eval").iter_rows(named=True):
            assert not what_links(row) & trained, row
        assert rows["split"].n_unique() == 2, "nothing was compared"
        (workspace.training_set / "stage.json").unlink()
        assert build(*sources, recipe=RECIPE).data_version == summary.data_version, "built again"
        earlier = chance.choice(versions) if chance.random() < 0.2 else versions[-1]
        versions.append({name: next_version(chance, rows) for name, rows in earlier.items()})
