"""Each format gives the pairs that are meant, and rejects a record with rule, reason and value."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.core.corpus.readers.reading import jsonl, read, rules
from tests.stored_pictures import file_of
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import RawPair, Rejection, read_source


class TestAlpaca:
    KEYS: ClassVar[dict[str, Any]] = {"format": Format.ALPACA, "task": Task.INSTR}

    def test_the_input_follows_the_instruction_on_its_own_line(self, tmp_path: Path) -> None:
        rows = [
            {"instruction": "dịch", "input": "một", "output": "one"},
            {"instruction": "kể", "input": " ", "output": "chuyện"},
            {"instruction": "đếm", "output": 3},
        ]
        records = read(tmp_path, "a.json", json.dumps(rows, indent=2), **self.KEYS)
        assert [(p.query, p.target) for r in records for p in r.pairs] == [
            ("dịch\nmột", "one"), ("kể", "chuyện"), ("đếm", "3"),
        ]  # fmt: skip
        assert [record.line for record in records] == [1, 2, 3]

    def test_of_several_lists_of_records_none_is_chosen(self, tmp_path: Path) -> None:
        rows = [{"instruction": "i", "output": "o"}]
        (record,) = read(tmp_path, "a.json", json.dumps({"train": rows, "test": rows}), **self.KEYS)
        assert rules([record]) == ["missing_field"]

    def test_history_and_system_come_before(self, tmp_path: Path) -> None:
        row = {"system": "s", "history": [["a", "b"]], "instruction": "c", "output": "d"}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        turns = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))
        assert record.pairs == (RawPair(Task.INSTR, "c", "d", history=turns),)
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), "each", **self.KEYS)
        assert [(pair.query, pair.target) for pair in record.pairs] == [("a", "b"), ("c", "d")]

    def test_a_cell_of_a_table_spells_the_history_in_json(self, tmp_path: Path) -> None:
        text = 'instruction,output,history\nc,d,"[[""a"", ""b""]]"\nc,d,\nc,d,a: b\n'
        records = read(tmp_path, "a.csv", text, **self.KEYS)
        turns = (Turn("user", "a"), Turn("assistant", "b"))
        assert [pair.history for record in records for pair in record.pairs] == [turns, None]
        assert rules(records) == [None, None, "broken_dialogue"]

    def test_a_broken_element_of_an_array_costs_only_itself(self, tmp_path: Path) -> None:
        rows = [{"instruction": f"i{n}", "output": "o"} for n in range(4)]
        text = json.dumps(rows, indent=2).replace('"i1"', '"i1').replace('"i3",', '"i3",,')
        records = read(tmp_path, "a.json", text, **self.KEYS)
        assert [record.pairs[0].query for record in records if record.pairs] == ["i0", "i2"]
        assert rules(records) == [None, "broken_json", None, "broken_json"]
        cut = json.dumps(rows)[:-30]
        assert rules(read(tmp_path, "b.json", cut, **self.KEYS)) == [None, None, None, "broken_json"]

    def test_pictures_are_dealt_by_the_placeholders_of_history_instruction_and_input(
        self, tmp_path: Path
    ) -> None:
        rows = [
            {"instruction": "<image>q", "input": "", "output": "t", "images": ["a"]},
            {"instruction": "q", "input": "r <image>", "output": "t", "image": "a"},
            {"instruction": "q", "output": "t", "images": []},
            {"instruction": "<image>q", "output": "t", "images": None},
            {"history": [["<image>p", "o"]], "instruction": "<image>q", "output": "t", "images": ["a", "b"]},
        ]
        records = read(tmp_path, "a.json", json.dumps(rows), "each", **self.KEYS)
        assert [(p.query, p.query_images) for record in records for p in record.pairs] == [
            ("<image>q", ("a",)), ("q\nr <image>", ("a",)), ("q", ()), ("<image>q", ()),
            ("<image>p", ("a",)), ("<image>q", ("a", "b")),
        ]  # fmt: skip
        keys = {**self.KEYS, "task": Task.VQA_SINGLE, "columns": {"images": "pics"}}
        rows = [{"instruction": "q", "output": "t", "pics": ["a"]}, {"instruction": "q", "output": "t"}]
        shown, bare = read(tmp_path, "b.json", json.dumps(rows), **keys)
        assert shown.pairs == (RawPair(Task.VQA_SINGLE, "q", "t", query_images=("a",)),)
        assert rules([bare]) == ["no_images"]

    @pytest.mark.parametrize("value", [[None], [""], {"bytes": None, "path": None}, [{}]])
    def test_a_cell_without_a_picture_is_none(self, tmp_path: Path, value: Any) -> None:
        row = {"instruction": "q", "output": "t", "images": value}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert [(pair.query, pair.query_images) for pair in record.pairs] == [("q", ())]
        row["images"] = ["1.png", *(value if isinstance(value, list) else [value])]
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert [pair.query_images for pair in record.pairs] == [("1.png",)]

    @pytest.mark.parametrize(
        ("columns", "query", "target"),
        [
            ({"instruction": "input"}, "a", "t"),
            ({"instruction": "q", "target": "input"}, "q", "a"),
            ({"instruction": "q", "input": None}, "q", "t"),
            ({"instruction": "q", "group_id": "input"}, "q\na", "t"),
        ],
    )
    def test_a_field_has_one_part_in_a_pair(
        self, tmp_path: Path, columns: dict[str, Any], query: str, target: str
    ) -> None:
        row = jsonl({"q": "q", "input": "a", "output": "t"})
        (record,) = read(tmp_path, "a.jsonl", row, columns=columns, **self.KEYS)
        assert [(pair.query, pair.target) for pair in record.pairs] == [(query, target)]

    @pytest.mark.parametrize("key", ["video", "videos", "audio", "audios"])
    @pytest.mark.parametrize("fmt", [Format.ALPACA, Format.MESSAGES])
    def test_a_row_with_a_video_or_audio_is_rejected(self, tmp_path: Path, key: str, fmt: Format) -> None:
        turns = [{"role": "user", "content": "<video>q"}, {"role": "assistant", "content": "t"}]
        row = {"instruction": "<video>q", "output": "t", "messages": turns}
        nothing = ([], "", None, [""], [{}], {"bytes": None, "path": None})
        rows = [{**row, key: value} for value in (["a.mp4"], "a.mp4", *nothing)]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), **{**self.KEYS, "format": fmt})
        assert rules(records) == ["video_or_audio"] * 2 + [None] * len(nothing)
        assert records[0].rejection is not None
        assert records[0].rejection.reason == f"the record has {key!r}, which is not read"

    @pytest.mark.parametrize("history", ["x", [["a"]], [{"q": "a"}], [[["a"], {}]]])
    def test_a_history_that_is_none_is_rejected(self, tmp_path: Path, history: Any) -> None:
        row = {"history": history, "instruction": "c", "output": "d"}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert record.rejection is not None


class TestImageQa:
    KEYS: ClassVar[dict[str, Any]] = {"format": Format.IMAGE_QA, "task": Task.VQA_SINGLE}

    def test_pictures_come_as_paths_lists_and_bytes(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a.png", "question": "q", "answer": "t"},
            {"images": ["a.png", "b.png"], "question": "q", "answer": ["t"]},
            {"images": '["a.png", "b.png"]', "query": "q", "target": "t"},
            {"images": [{"path": "c.png"}], "query": "q", "output": "t"},
        ]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), **self.KEYS)
        assert [record.pairs[0].query_images for record in records] == [
            ("a.png",), ("a.png", "b.png"), ("a.png", "b.png"), ("c.png",),
        ]  # fmt: skip
        assert all(record.pairs[0].target == "t" for record in records)
        table = pa.table({"image": [{"bytes": b"png", "path": "x"}], "question": ["q"], "answer": ["t"]})
        pq.write_table(table, tmp_path / "x.parquet")
        (record,) = read(tmp_path, "a.parquet", (tmp_path / "x.parquet").read_bytes(), **self.KEYS)
        assert record.pairs[0].query_images == (b"png",)

    @pytest.mark.parametrize(
        ("picture", "rule", "reason", "value"),
        [
            (
                {"image": {"id": 7, "file_name": "a.png", "path": None}},
                "wrong_type",
                "the object of a picture has no 'bytes' or 'path' or 'url'",
                "fields: id, file_name, path (empty)",
            ),
            (
                {"img_path": "a.png"},
                "no_images",
                "the record has no 'images' or 'image'",
                "fields: question, answer, img_path",
            ),
        ],
    )
    def test_where_a_picture_was_looked_for_is_told(
        self, tmp_path: Path, picture: dict[str, Any], rule: str, reason: str, value: str
    ) -> None:
        row = {"question": "q", "answer": "t", **picture}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert record.rejection == Rejection(rule, reason, value)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
    def test_pictures_stand_in_the_rows_as_base64(self, tmp_path: Path, kind: str) -> None:
        picture = file_of(Image.new("RGB", (40, 30), "red"), kind)
        bare, lines = base64.b64encode(picture).decode(), base64.encodebytes(picture).decode()
        uri = f"data:image/{kind.lower()};base64,{bare}"
        ways = [bare, lines, uri, {"bytes": bare.rstrip("=")}, [uri, "a.png"], json.dumps([uri])]
        rows = [{"image": way, "question": "q", "answer": "t"} for way in ways]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), **self.KEYS)
        assert [record.pairs[0].query_images for record in records] == [
            (picture,), (picture,), (picture,), (picture,), (picture, "a.png"), (picture,),
        ]  # fmt: skip

    def test_base64_that_was_cut_gives_the_bytes_that_are_whole(self, tmp_path: Path) -> None:
        picture = file_of(Image.new("RGB", (40, 30), "red"))
        digits = base64.b64encode(picture).decode()
        rows = [{"image": digits[:end], "question": "q", "answer": "t"} for end in (80, 81, 82, 83)]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), **self.KEYS)
        assert [len(record.pairs[0].query_images[0]) for record in records] == [60, 60, 61, 62]
        assert all(picture.startswith(record.pairs[0].query_images[0]) for record in records)

    @pytest.mark.parametrize(
        "path",
        ["UklGR.webp", "/9j/a.jpg", "R0lGOD" + "lh" * 40 + ".gif", "data:,x"],
    )
    def test_what_is_no_base64_stays_a_path(self, tmp_path: Path, path: str) -> None:
        row = {"image": path, "question": "q", "answer": "t"}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert record.pairs[0].query_images == (path,)

    def test_base64_that_never_ends_is_read_in_time(self, tmp_path: Path) -> None:
        """A pattern that tries every end of a run of spaces would take hours."""
        row = {
            "image": "data:image/png;base64," + "A" * 64 + " " * 1_000_000 + "!",
            "question": "q",
            "answer": "t",
        }
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert record.pairs[0].query_images == (row["image"],)

    def test_a_json_file_may_be_an_object_around_rows_under_the_name_of_pictures(
        self, tmp_path: Path
    ) -> None:
        rows = [{"image": f"{n}.png", "question": "q", "answer": "t"} for n in range(4)]
        content = json.dumps({"images": [{"image": "x.png", "question": "q"}, *rows]})  # one is broken
        records = read(tmp_path, "a.json", content, **self.KEYS)
        assert rules(records) == ["missing_field", None, None, None, None]
        beside = {"annotations": rows, "images": [{"id": 1, "path": "0.png"}]}
        assert rules(read(tmp_path, "b.json", json.dumps(beside), **self.KEYS)) == [None] * 4

    def test_a_json_file_may_be_one_row_with_lists_of_objects(self, tmp_path: Path) -> None:
        row = {"images": [{"path": "a.png"}], "question": "q", "answers": [{"answer": "t"}, {"answer": "u"}]}
        (record,) = read(tmp_path, "a.json", json.dumps(row), **self.KEYS)
        assert [(pair.query_images, pair.target) for pair in record.pairs] == [
            (("a.png",), "t"), (("a.png",), "u"),
        ]  # fmt: skip
        parts = json.dumps({"images": [{"path": "a.png"}, {"path": "b.png"}], "question": "q", "answer": "t"})
        (record,) = read(tmp_path, "b.json", parts, **self.KEYS)
        assert [pair.query_images for pair in record.pairs] == [("a.png", "b.png")]

    def test_a_fixed_question_serves_answers_that_come_alone(self, tmp_path: Path) -> None:
        keys = {**self.KEYS, "columns": {"target": "meta.latex"}, "query_text": "Đọc"}
        (record,) = read(tmp_path, "a.jsonl", jsonl({"image": "a", "meta": {"latex": "x^2"}}), **keys)
        assert record.pairs == (RawPair(Task.VQA_SINGLE, "Đọc", "x^2", query_images=("a",)),)
        keys["columns"] = {"target": "meta.latex", "query": "asked"}
        row = {"image": "a", "asked": "q", "meta": {"latex": "x^2"}}
        (record,) = read(tmp_path, "b.jsonl", jsonl(row), **keys)
        assert record.pairs[0].query == "q"

    def test_a_row_keeps_its_own_question_beside_a_fixed_one(self, tmp_path: Path) -> None:
        rows = [{"image": "a", "answer": "t", "question": question} for question in ("q", None, " ")]
        records = read(tmp_path, "a.jsonl", jsonl(*rows), query_text="Đọc", **self.KEYS)
        assert [pair.query for record in records for pair in record.pairs] == ["q", "Đọc", "Đọc"]

    @pytest.mark.parametrize(
        ("answers", "targets"),
        [
            (["a", "b", "b", " "], ["b", "a"]),
            ([{"answer": "yes", "answer_confidence": "maybe"}, {"answer": "no"}], ["yes", "no"]),
            ({"text": ["x", "y"], "answer_start": [1, 2]}, ["x", "y"]),
            ([3, 4.5], ["3", "4.5"]),
            ([" "], [" "]),
            ([None, "a", {"answer": None}], ["a"]),
        ],
    )
    def test_alternative_answers_are_a_pair_each(
        self, tmp_path: Path, answers: Any, targets: list[str]
    ) -> None:
        row = {"image": "a.png", "question": "q", "answers": answers}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert [pair.target for pair in record.pairs] == targets
        assert {(pair.query, pair.query_images) for pair in record.pairs} == {("q", ("a.png",))}

    @pytest.mark.parametrize(
        ("answers", "rule"), [([], "missing_field"), ([None], "missing_field"), ({}, "wrong_type")]
    )
    def test_alternatives_that_are_none_are_rejected(self, tmp_path: Path, answers: Any, rule: str) -> None:
        row = {"image": "a.png", "question": "q", "answer": answers}
        assert rules(read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)) == [rule]

    def test_of_two_names_that_which_holds_something_counts(self, tmp_path: Path) -> None:
        row = {"images": [], "image": "a.png", "question": "q", "answer": "", "answers": ["t"]}
        (record,) = read(tmp_path, "a.jsonl", jsonl(row), **self.KEYS)
        assert [(pair.query_images, pair.target) for pair in record.pairs] == [(("a.png",), "t")]

    def test_a_row_without_picture_or_answer_is_rejected(self, tmp_path: Path) -> None:
        rows = [
            {"image": "", "question": "q", "answer": "t"},
            {"image": "a", "question": "q"},
            {"image": "a", "answer": "t"},
        ]
        assert rules(read(tmp_path, "a.jsonl", jsonl(*rows), **self.KEYS)) == [
            "no_images",
            "missing_field",
            "missing_field",
        ]


class TestParallelLines:
    @staticmethod
    def source(folder: Path, **keys: Any) -> Source:
        (folder / "1.txt").write_text("a\n\nb\nc\nd\n")
        (folder / "2.txt").write_text("A\n\n\nC\n")
        (folder / "labels.txt").write_text("1\n\n0\n1,\n")
        paths = tuple(str(folder / name) for name in ("1.txt", "2.txt", "labels.txt"))
        return Source(name="s", format=Format.PARALLEL_LINES, task=Task.TEXT_PAIR, paths=paths, **keys)

    def test_lines_with_the_same_number_belong_together(self, tmp_path: Path) -> None:
        records = list(read_source(self.source(tmp_path)))
        assert [(r.line, *((p.query, p.target, p.score) for p in r.pairs)) for r in records] == [
            (1, ("a", "A", 1.0)), (3, ("b", "", 0.0)), (4, ("c", "C", 1.0)), (5,),
        ]  # fmt: skip
        assert rules(records) == [None, None, None, "missing_line"]
        assert {record.file for record in records} == {"1.txt"}
        assert list(read_source(self.source(tmp_path, max_rows=2))) == records[:2]

    def test_scores_are_scaled_and_a_line_that_only_they_lack_is_no_pair_without_score(
        self, tmp_path: Path
    ) -> None:
        source = self.source(tmp_path, score_range=(0.0, 2.0))
        (tmp_path / "2.txt").write_text("A\n\n\nC\nD\n")
        records = list(read_source(source))
        assert [pair.score for record in records for pair in record.pairs] == [0.5, 0.0, 0.5]
        assert rules(records) == [None, None, None, "missing_line"]

    def test_one_file_may_be_two_sides_whatever_its_names(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        paths = (source.paths[0], f"{tmp_path}/../{tmp_path.name}/1.txt")
        (first, *_) = read_source(replace(source, paths=paths))
        assert first.pairs == (RawPair(Task.TEXT_PAIR, "a", "a"),)

    def test_columns_say_which_file_is_which(self, tmp_path: Path) -> None:
        columns = {"query": "2.txt", "target": 0}
        (first, *_) = read_source(self.source(tmp_path, columns=columns))
        assert first.pairs == (RawPair(Task.TEXT_PAIR, "A", "a"),)
        columns |= {"score": "labels.txt"}
        (first, *_) = read_source(self.source(tmp_path, columns=columns))
        assert first.pairs == (RawPair(Task.TEXT_PAIR, "A", "a", score=1.0),)
        (tmp_path / "11.txt").write_text("e\n")
        source = self.source(tmp_path, columns={"query": "1.txt", "target": 0})
        (first, *_) = read_source(replace(source, paths=(str(tmp_path / "11.txt"), source.paths[0])))
        assert first.pairs == (RawPair(Task.TEXT_PAIR, "a", "e"),)
        for wrong in (
            {"query": "3.txt", "target": 0},
            {"query": 9, "target": 0},
            {"query": -1, "target": 0},
            {"query": 0},
        ):
            with pytest.raises(ValueError, match=r"source 's': columns\."):
                next(read_source(self.source(tmp_path, columns=wrong)))

    def test_equal_names_in_folders_are_told_apart_and_each_file_has_its_encoding(
        self, tmp_path: Path
    ) -> None:
        for folder, data in (
            ("vi", "một\r\n \r\nhai\r\n".encode("utf-8-sig")),
            ("zh", "收据的总额\n\t\n".encode("gb18030")),
        ):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.txt").write_bytes(data)
        paths = tuple(str(tmp_path / folder / "a.txt") for folder in ("vi", "zh"))
        keys = {"format": Format.PARALLEL_LINES, "task": Task.TEXT_PAIR, "languages": ("vi", "zh")}
        pair, lacking = read_source(Source(name="s", paths=paths, **keys))
        assert (pair.file, pair.pairs) == ("vi/a.txt", (RawPair(Task.TEXT_PAIR, "một", "收据的总额"),))
        assert lacking.rejection is not None
        assert (lacking.line, lacking.rejection.rule, lacking.rejection.value) == (3, "missing_line", "hai")
        columns = {"query": "zh/a.txt", "target": "vi/a.txt"}
        swapped, lacking = read_source(Source(name="s", paths=paths, columns=columns, **keys))
        assert swapped.pairs == (RawPair(Task.TEXT_PAIR, "收据的总额", "một"),)
        assert lacking.rejection is not None
        assert lacking.rejection.value == "hai"
        for wrong, message in (
            ((str(tmp_path / "*" / "a.txt"), paths[0]), "names 2 files; parallel lines need one"),
            ((*paths, *paths), "need 2 or 3 paths, not 4"),
        ):
            with pytest.raises(ValueError, match=message):
                next(read_source(Source(name="s", paths=wrong, **keys)))
