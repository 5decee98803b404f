"""A copy that is dropped links what it was linked to with the row that stays."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from quality.copied_links import MOST_COPIES
from tests.quality.conftest import RECIPE, everything, instruction, sentence
from vipolyqwen_core.config import CurationSettings


def test_the_group_of_a_copy_that_was_dropped_is_linked_to_what_stays(workspace, write_source, build) -> None:
    long, short = instruction(1), {**instruction(2), "input": "Xin chào!", "output": "Chào bạn!"}
    records = [
        {**long, "group_id": "a"},
        {**long, "group_id": "b"},  # dropped, and with it what links line 3
        {**instruction(3), "group_id": "b"},
        {**short, "group_id": "c"},
        {**short, "group_id": "d"},  # a greeting links no groups
        {**instruction(4), "group_id": "d"},
        {**instruction(5), "group_id": "a"},
        {**instruction(6), "input": sentence(6, 40), "group_id": "e"},
        {**instruction(6), "input": sentence(6, 40) + " Vâng.", "group_id": "f"},  # a near copy, which stays
        {**instruction(7), "group_id": "e"},
    ]
    summary = build(write_source(records, name="one"), write_source([{**instruction(8), "group_id": "b"}]))
    assert summary.pairs_in == 8
    of_line = dict(everything(workspace).filter(pl.col("source") == "one").select("line", "component").rows())
    assert of_line[1] == of_line[3] == of_line[7]
    assert of_line[9] == of_line[10]
    assert len(set(of_line.values())) == 4  # and 4, and 6
    assert everything(workspace)["component"].n_unique() == 5  # another source's group is another


def test_a_row_of_no_group_is_linked_to_the_group_of_its_dropped_copy(workspace, write_source, build) -> None:
    stays = instruction(1, positive_key="k")  # it says as much as its copy, and earlier
    records = [stays, instruction(1, group_id="b"), instruction(2, group_id="b"), instruction(3)]
    assert build(write_source(records)).pairs_in == 3
    of_line = dict(everything(workspace).select("line", "component").rows())
    assert of_line[1] == of_line[3] != of_line[4]


def test_a_pair_that_many_groups_have_links_none_of_them(workspace, write_source, build) -> None:
    form = [{**instruction(1), "group_id": str(number)} for number in range(MOST_COPIES + 2)]
    own = [{**instruction(2 + number), "group_id": str(number)} for number in range(MOST_COPIES + 2)]
    assert build(write_source(form + own)).pairs_in == MOST_COPIES + 3
    assert everything(workspace)["component"].n_unique() == MOST_COPIES + 2


def test_the_dialogue_of_a_copy_that_was_dropped_is_linked_to_what_stays(
    workspace, write_source, build
) -> None:
    def dialogue(number: int) -> dict[str, Any]:
        turns = [("user", sentence(1)), ("assistant", sentence(2)), ("user", sentence(number))]
        messages = [{"role": role, "content": text} for role, text in turns]
        return {"data_type": "instruction", "input": messages, "output": sentence(number + 50)}

    recipe = replace(RECIPE, curation=CurationSettings(dialogue_turns="each"))
    summary = build(write_source([dialogue(3), dialogue(4), instruction(9)]), recipe=recipe)
    assert summary.pairs_in == 4  # the first turns are the same
    dialogues = everything(workspace).filter(pl.col("line") < 3)
    assert (dialogues.height, dialogues["component"].n_unique()) == (3, 1)
    assert everything(workspace)["component"].n_unique() == 2


def test_groups_that_a_dropped_copy_links_are_named(workspace, write_source, build, monkeypatch) -> None:
    monkeypatch.setattr("quality.split.SMALL_COMPONENT", 5)
    same = [instruction(0, group_id=f"doc{number}") for number in range(7)]
    own = [instruction(1 + number, group_id=f"doc{number}") for number in range(7)]
    with pytest.raises(
        ValueError, match=r"8 of 38 rows.*; 6 groups or dialogues are linked by a copy in them that was dr"
    ):
        build(write_source(same + own + [instruction(i) for i in range(10, 40)]))
