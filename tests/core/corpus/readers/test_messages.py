"""Dialogues: the last answer or each, what came before it, and which turn a picture belongs to."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.core.corpus.readers.reading import jsonl, read, rules
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.manifest import Format
from vipolyqwen_core.corpus.readers import RawPair


class TestMessages:
    KEYS: ClassVar[dict[str, Any]] = {"format": Format.MESSAGES, "task": Task.VQA_MULTI}

    def test_both_spellings_give_the_same_pair(self, tmp_path: Path) -> None:
        answer = {"role": "assistant", "content": "t"}
        parts = [{"type": "image", "image": "a"}, {"type": "text", "text": "q"}]
        url = {"type": "image_url", "image_url": {"url": "a"}}
        path = {"type": "image", "image": None, "path": "a"}  # a table has all keys in all parts
        bare = {"type": "image", "url": "a"}
        rows = [
            {"messages": [{"role": "user", "content": "<image>q"}, answer], "images": ["a"]},
            {
                "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "t"}],
                "image": "a",
            },
            {"messages": [{"role": "user", "content": parts}, answer]},
            {"messages": [{"role": "user", "content": [url, parts[1]]}, answer]},
            {"messages": [{"role": "user", "content": [path, parts[1]]}, answer]},
            {"messages": [{"role": "user", "content": [bare, parts[1]]}, answer]},
            {"messages": [{"role": "user", "content": [{"type": "image"}, parts[1]]}, answer], "images": "a"},
        ]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), **self.KEYS)
        pair = RawPair(Task.VQA_MULTI, "<image>q", "t", query_images=("a",))
        assert [record.pairs for record in records] == [(pair,)] * 7

    def test_a_system_turn_of_its_own_comes_first(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "t"}]
        rows = jsonl({"system": "s", "messages": turns, "images": ["a"]})
        (record,) = read(tmp_path, "a.jsonl", rows, **self.KEYS)
        assert record.pairs[0].history == (Turn("system", "s"),)

    def test_a_placeholder_in_the_last_answer_takes_no_picture(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "t <image>"}]
        (record,) = read(tmp_path, "a.jsonl", jsonl({"messages": turns, "images": ["a"]}), **self.KEYS)
        assert record.pairs == (RawPair(Task.VQA_MULTI, "q", "t <image>", query_images=("a",)),)

    def test_a_picture_within_the_last_answer_is_none_of_the_question(self, tmp_path: Path) -> None:
        def turn(role: str, picture: str) -> dict[str, Any]:
            return {
                "role": role,
                "content": [{"type": "text", "text": "t"}, {"type": "image", "image": picture}],
            }

        shown = [turn("user", "a"), turn("assistant", "b")]
        thanks = {"role": "user", "content": "cảm ơn"}
        rows = jsonl(
            {"messages": shown},
            {"messages": [*shown, thanks]},
            {"messages": [*shown, turn("user", "c")]},
            {"messages": [*shown, turn("user", "c"), {"role": "bot", "content": "u"}]},
        )
        *refused, answered = read(tmp_path, "a.jsonl", rows, **self.KEYS)
        assert rules(refused) == ["picture_in_answer"] * 3
        assert answered.pairs[0].query_images == ("a", "b", "c")
        *_, each = read(tmp_path, "a.jsonl", rows, "each", **self.KEYS)
        assert [pair.query_images for pair in each.pairs] == [("a",), ("a", "b", "c")]

    def test_placeholders_beyond_the_pictures_take_none_from_earlier_questions(self, tmp_path: Path) -> None:
        turns = [
            {"role": role, "content": text}
            for role, text in (("user", "<image><image>q"), ("bot", "t"), ("user", "<image>r"), ("bot", "u"))
        ]
        row = jsonl({"messages": turns, "images": ["a", "b"]})
        (record,) = read(tmp_path, "a.jsonl", row, "each", **self.KEYS)
        assert [pair.query_images for pair in record.pairs] == [("a", "b")] * 2

    def test_only_tasks_without_pictures_do_without_them(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "t"}]
        for task, rule in ((Task.VQA_SINGLE, "no_images"), (Task.INSTR, None)):
            keys = {**self.KEYS, "task": task}
            assert rules(read(tmp_path, "a.jsonl", jsonl({"messages": turns}), **keys)) == [rule]

    def test_an_answer_without_a_question_leaves_the_others_where_each_is_a_pair(
        self, tmp_path: Path
    ) -> None:
        turns = [{"role": "user", "content": "q"}, *({"role": "assistant", "content": t} for t in "tu")]
        rows = jsonl({"messages": turns, "images": ["a"]})
        (record,) = read(tmp_path, "a.jsonl", rows, "each", **self.KEYS)
        assert record.pairs == (RawPair(Task.VQA_MULTI, "q", "t", query_images=("a",)),)

    @pytest.mark.parametrize("key", ["messages", "conversations", "chat"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_json_file_may_be_one_dialogue_or_an_object_around_many(
        self, tmp_path: Path, key: str, wrapped: bool
    ) -> None:
        turns = [{"role": "user", "content": "mấy giờ?"}, {"role": "assistant", "content": "năm giờ"}]
        record = {"id": 7, key: turns}
        content = json.dumps({key: [record, record]} if wrapped else record)
        columns = {"messages": "chat"} if key == "chat" else {}
        found = read(tmp_path, "x.json", content, format="messages", task="instr", columns=columns)
        assert [(pair.query, pair.target) for one in found for pair in one.pairs] == [
            ("mấy giờ?", "năm giờ")
        ] * (2 if wrapped else 1)
        assert rules(found) == [None] * (2 if wrapped else 1)

    @pytest.mark.parametrize(
        ("outer", "inner"), [("conversations", "messages"), ("messages", "conversations")]
    )
    def test_an_object_around_many_dialogues_may_bear_the_other_name(
        self, tmp_path: Path, outer: str, inner: str
    ) -> None:
        turns = [{"role": "user", "content": "mấy giờ?"}, {"role": "assistant", "content": "năm giờ"}]
        content = json.dumps({"version": 1, outer: [{inner: turns}] * 5})
        found = read(tmp_path, "x.json", content, format="messages", task="instr")
        assert [len(record.pairs) for record in found] == [1] * 5

    def test_one_dialogue_with_pictures_as_objects_is_one_record(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "t"}]
        content = json.dumps({"messages": turns, "images": [{"path": "a.png"}]})
        (record,) = read(tmp_path, "x.json", content, **self.KEYS)
        assert record.pairs == (RawPair(Task.VQA_MULTI, "<image>q", "t", query_images=("a.png",)),)

    def test_names_of_roles_and_contents_are_mapped(self, tmp_path: Path) -> None:
        row = {"c": {"turns": [{"who": "USER", "says": "q"}, {"who": "bot", "says": "t"}]}, "pics": ["a"]}
        columns = {"messages": "c.turns", "role": "who", "content": "says", "images": "pics"}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), columns=columns, **self.KEYS)
        assert record.pairs == (RawPair(Task.VQA_MULTI, "q", "t", query_images=("a",)),)

    @pytest.mark.parametrize(
        ("turns", "rule"),
        [
            ([("user", "q")], "no_answer"),
            ([("assistant", "t")], "no_question"),
            ([("user", "q"), ("assistant", "t"), ("assistant", "u")], "no_question"),
            ([("user", "q"), ("observation", "t")], "unknown_role"),
        ],
    )
    def test_a_dialogue_without_question_and_answer_is_rejected(
        self, tmp_path: Path, turns: list[tuple[str, str]], rule: str
    ) -> None:
        messages = [{"role": role, "content": text} for role, text in turns]
        records = read(tmp_path, "a.jsonl", jsonl({"messages": messages, "images": ["a"]}), **self.KEYS)
        assert rules(records) == [rule]

    def test_a_question_after_the_last_answer_is_left_out(self, tmp_path: Path) -> None:
        messages = [
            {"role": "user", "content": "<image>q"},
            {"role": "assistant", "content": "t"},
            {"role": "user", "content": "<image>later"},
        ]
        (record,) = read(
            tmp_path, "a.jsonl", jsonl({"messages": messages, "images": ["a", "b"]}), **self.KEYS
        )
        assert record.pairs == (RawPair(Task.VQA_MULTI, "<image>q", "t", query_images=("a",)),)
