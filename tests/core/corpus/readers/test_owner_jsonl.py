"""Lines of `owner_jsonl` load as they are; what is wrong is rejected with rule, reason and value."""

import json
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import RawPair, RawSide, Record, read_source


def read(folder: Path, content: str | bytes, turns: str = "last", **keys: Any) -> list[Record]:
    path = folder / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_source(Source(name="s", format=Format.OWNER_JSONL, paths=(str(path),), **keys), turns))


def pairs(folder: Path, row: Any, turns: str = "last", **keys: Any) -> tuple[RawPair, ...]:
    (record,) = read(folder, json.dumps(row), turns, **keys)
    assert record.rejection is None, record.rejection
    return record.pairs


def rule_of(folder: Path, row: Any, **keys: Any) -> str | None:
    (record,) = read(folder, json.dumps(row), **keys)
    assert (record.rejection is None) == bool(record.pairs)
    return record.rejection and record.rejection.rule


@pytest.mark.parametrize(
    "keys", [("input", "output"), ("text1", "text2"), ("question", "answer"), ("input", "answer")]
)
def test_scored_pairs_under_each_name(tmp_path: Path, keys: tuple[str, str]) -> None:
    row = {"data_type": "contrastive_with_score", keys[0]: "a", keys[1]: "b", "similarity_score": 0.25}
    assert pairs(tmp_path, row) == (RawPair(Task.TEXT_PAIR, "a", "b", score=0.25),)


def test_an_earlier_answer_may_hold_a_picture_but_not_the_one_before_the_target(tmp_path: Path) -> None:
    shown = {"role": "assistant", "content": [{"type": "image", "image": "b"}]}
    turns = [{"role": "user", "content": "vẽ mèo"}, shown]
    row = {"data_type": "vqa_multi", "images": ["a"], "input": turns, "output": "đây"}
    assert rule_of(tmp_path, row) == "picture_in_answer"
    (pair,) = pairs(tmp_path, {**row, "input": [*turns, {"role": "user", "content": "màu gì?"}]})
    assert pair.query_images == ("a", "b")
    assert pair.history == (Turn("user", "vẽ mèo"), Turn("assistant", "<image>"))


@pytest.mark.parametrize("kind", ["ocr", "ocq", "OCR "])
def test_ocr_under_each_name(tmp_path: Path, kind: str) -> None:
    row = {"data_type": kind, "images": ["x\\1.png"], "question": "gì?", "answer": "chữ"}
    assert pairs(tmp_path, row) == (RawPair(Task.OCR, "gì?", "chữ", query_images=("x\\1.png",)),)


def test_one_user_message_is_plain_text(tmp_path: Path) -> None:
    row = {"data_type": "instruction", "input": [{"role": "user", "content": "hỏi"}], "output": "đáp"}
    assert pairs(tmp_path, row) == (RawPair(Task.INSTR, "hỏi", "đáp"),)


DIALOGUE = (
    {"role": "system", "content": "ngắn"},
    {"role": "user", "content": "một <image>"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "hai"},
)


def test_the_last_answer_is_the_target_and_what_came_before_the_history(tmp_path: Path) -> None:
    row = {"data_type": "vqa_multi", "images": ["a"], "input": DIALOGUE, "output": "2"}
    history = (Turn("system", "ngắn"), Turn("user", "một <image>"), Turn("assistant", "1"))
    last = RawPair(Task.VQA_MULTI, "hai", "2", query_images=("a",), history=history)
    assert pairs(tmp_path, row) == (last,)
    first = RawPair(Task.VQA_MULTI, "một <image>", "1", query_images=("a",), history=history[:1])
    assert pairs(tmp_path, row, "each") == (first, last)


@pytest.mark.parametrize(
    ("spoken", "output"),
    [("2", "2"), (" 2\n", "2"), ("ve\u0302\u0300", "về"), ("một  hai", "một hai"), ("A &amp; B", "A & B")],
)
def test_an_answer_that_stands_in_the_messages_too_is_not_in_the_query(
    tmp_path: Path, spoken: str, output: str
) -> None:
    messages = [*DIALOGUE, {"role": "assistant", "content": spoken}]
    row = {"data_type": "vqa_multi", "images": ["a"], "input": messages, "output": output}
    (pair,) = pairs(tmp_path, row)
    assert (pair.query, pair.target) == ("hai", output)
    assert pair.history is not None
    assert len(pair.history) == 3
    del row["output"]
    (pair,) = pairs(tmp_path, row)
    assert (pair.query, pair.target) == ("hai", spoken)


def test_messages_with_another_answer_than_the_record_are_told_as_such(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hai"}, {"role": "assistant", "content": "ba"}]
    row = {"data_type": "instruction", "input": messages, "output": "2"}
    (record,) = read(tmp_path, json.dumps(row))
    assert record.rejection is not None
    assert (record.rejection.rule, record.rejection.value) == ("no_question", "ba")
    assert "another answer" in record.rejection.reason
    (pair,) = pairs(tmp_path, row, "each")
    assert (pair.query, pair.target) == ("hai", "ba")


@pytest.mark.parametrize(
    ("first", "second"), [("một", "hai <image>"), ("&lt;image&gt;một", "hai &lt;image&gt;")]
)
def test_an_earlier_answer_does_not_see_later_pictures(tmp_path: Path, first: str, second: str) -> None:
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": second},
    ]
    row = {"data_type": "vqa_multi", "images": ["a", "b"], "input": messages, "output": "2"}
    earlier, last = pairs(tmp_path, row, "each")
    assert earlier.query_images == ("a",)  # without a placeholder too: it belongs to the first user text
    assert last.query_images == ("a", "b")


def test_pictures_may_stand_in_the_messages_alone(tmp_path: Path) -> None:
    content = [{"type": "image", "image": "a"}, {"type": "text", "text": "gì?"}]
    row = {"data_type": "vqa_single", "input": [{"role": "user", "content": content}], "output": "mèo"}
    assert pairs(tmp_path, row) == (RawPair(Task.VQA_SINGLE, "<image>gì?", "mèo", query_images=("a",)),)
    bare = {**row, "input": [{"role": "user", "content": "gì?"}]}
    assert rule_of(tmp_path, bare) == "no_images"


def test_optional_fields(tmp_path: Path) -> None:
    row = {
        "data_type": "instruction", "input": "q", "output": "t", "group_id": 7, "key": {"of": "k"},
        "wrong": ["a", {"text": "b", "images": ["x"]}, {"images": "y"}],
    }  # fmt: skip
    (pair,) = pairs(tmp_path, row, columns={"positive_key": "key.of", "negatives": "wrong"})
    assert (pair.group_id, pair.positive_key) == ("7", "k")
    assert pair.negatives == (RawSide("a"), RawSide("b", ("x",)), RawSide("", ("y",)))
    (pair,) = pairs(tmp_path, {**row, "group_id": 7.0, "key": {"of": ""}}, columns={"positive_key": "key.of"})
    assert (pair.group_id, pair.positive_key) == ("7", None)  # of a table, whose other rows have no group


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"data_type": "video"}, "unknown_data_type"),
        ({"data_type": None}, "unknown_data_type"),
        ({"data_type": 3}, "unknown_data_type"),
        ({"input": None}, "missing_field"),
        ({"output": None}, "missing_field"),
        ({"input": [{"role": "user", "content": "a"}], "output": None}, "missing_field"),
        ({"input": {"a": 1}}, "wrong_type"),
        ({"output": True}, "wrong_type"),
        ({"input": []}, "broken_dialogue"),
        ({"input": ["a"]}, "broken_dialogue"),
        ({"input": [{"role": "tool", "content": "a"}]}, "unknown_role"),
        ({"input": [{"role": "user"}]}, "wrong_type"),
        ({"input": [{"role": "system", "content": "a"}]}, "no_question"),
        (
            {"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "other than b"}]},
            "no_question",
        ),
        ({"negatives": [3]}, "wrong_type"),
        ({"group_id": [1, 2]}, "wrong_type"),
        ({"data_type": "ocr"}, "no_images"),
        ({"data_type": "ocr", "images": []}, "no_images"),
        ({"data_type": "ocr", "images": [None]}, "no_images"),
        ({"data_type": "ocr", "images": ["a", None]}, "wrong_type"),
        ({"data_type": "contrastive_with_score"}, "missing_field"),
        ({"data_type": "contrastive_with_score", "similarity_score": "x"}, "score_not_a_number"),
        ({"data_type": "contrastive_with_score", "similarity_score": float("nan")}, "missing_field"),
        ({"data_type": "contrastive_with_score", "similarity_score": 1.5}, "score_out_of_range"),
        ({"data_type": "contrastive_with_score", "output": ["b", "c"], "similarity_score": 1}, "wrong_type"),
    ],
)
def test_what_is_wrong_is_rejected_with_its_rule(tmp_path: Path, fields: dict[str, Any], rule: str) -> None:
    row = {"data_type": "instruction", "input": "a", "output": "b", **fields}
    assert rule_of(tmp_path, row) == rule


@pytest.mark.parametrize("row", ["a string", [1], None, 3.5])
def test_a_line_that_is_no_object_is_rejected(tmp_path: Path, row: Any) -> None:
    assert rule_of(tmp_path, row) == "not_an_object"


def test_the_task_of_the_manifest_stands_in_and_keeps_others_out(tmp_path: Path) -> None:
    (pair,) = pairs(tmp_path, {"input": "a", "output": "b"}, task=Task.INSTR)
    assert pair.task is Task.INSTR
    row = {"data_type": "ocr", "images": ["x"], "question": "a", "answer": "b"}
    assert rule_of(tmp_path, row, task=Task.INSTR) == "other_task"


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    good = b'{"data_type": "instruction", "input": "a", "output": "b"}'
    lines = [b"\xef\xbb\xbf" + good, b"", good[:20], b"[" * 100_000, b"   ", b"\x00\xff", good]
    records = read(tmp_path, b"\r\n".join(lines))
    assert [(record.line, record.rejection and record.rejection.rule) for record in records] == [
        (1, None), (3, "broken_json"), (4, "broken_json"), (6, "broken_json"), (7, None),
    ]  # fmt: skip
    assert records[2].rejection is not None
    assert len(records[2].rejection.value) == 200
