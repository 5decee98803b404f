"""The worked adapters on files like those they are written for: a record gives pairs, or its reason."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import Record, read_source


@pytest.fixture
def read(tmp_path: Path):
    """Writes files and reads them with an adapter."""

    def read_files(adapter: str, pattern: str, files: dict[str, Any], images: str = ".") -> list[Record]:
        for name, content in files.items():
            place = tmp_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        source = Source(
            name="s",
            format=Format.ADAPTER,
            adapter=f"examples.{adapter}",
            paths=(str(tmp_path / pattern),),
            image_root=str(tmp_path / images),
        )
        return list(read_source(source))

    return read_files


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def rules(records: list[Record]) -> list[str | None]:
    return [None if record.rejection is None else record.rejection.rule for record in records]


def test_examination_questions_with_and_without_pictures(read) -> None:
    plain = {
        "Image_Question": "",
        "Question": "Câu 1",
        "Choice": "",
        "Explanation": "Vì A.",
        "Image_Answer": "",
    }
    shown = {**plain, "Image_Question": "Geo_27/ Geo_27_30.png", "Image_Answer": "Geo_27/b.png"}
    essay = {unicodedata.normalize("NFD", "Câu hỏi"): "Phân tích.", "Gọi ý trả lời": "Bài văn."}
    broken = {**plain, "Explanation": None}
    files = {"test/Geography/Geo_27.json": [plain, shown, essay, broken], "eval/b.json": [plain]}
    records = read("vnhsge:questions", "**/*.json", files)
    assert rules(records) == [None, None, None, None, "missing_field"]
    first, second, third = (records[i].pairs[0] for i in (1, 2, 3))
    assert (first.task, first.query, first.target, first.query_images) == (Task.INSTR, "Câu 1", "Vì A.", ())
    assert second.task is Task.VQA_SINGLE
    assert second.query_images == ("test/Geography/Geo_27/Geo_27_30.png",)
    assert second.target_images == ("test/Geography/Geo_27/b.png",)
    assert (third.query, third.target) == ("Phân tích.", "Bài văn.")


def test_follow_up_questions_take_what_was_said_about_their_picture(read) -> None:
    def answer(image: str, question: str, answer: str) -> dict[str, str]:
        return {"image": image, "question": question, "answer": answer}

    rows = [
        answer("1.png", "What is it?", "A cat."),
        answer("2.png", "And this?", "A dog."),
        answer("1.png", "Why?", "无法回溯. "),
        answer("1.png", "What colour?", "Grey."),
        {"image": "1.png", "question": "No answer?"},
        "{broken",
    ]
    records = read("owleval:answers", "*.jsonl", {"model.jsonl": lines(*rows)})
    assert rules(records) == [None, None, "no_answer", None, "missing_field", "broken_json"]
    tasks = [record.pairs[0].task for record in records if record.pairs]
    assert tasks == [Task.VQA_SINGLE, Task.VQA_SINGLE, Task.VQA_MULTI]
    last = records[3].pairs[0]
    assert last.history == (Turn("user", "What is it?"), Turn("assistant", "A cat."))
    assert last.query_images == ("1.jpg",)


def test_a_statement_gives_a_pair_for_each_order_of_its_boxes(read) -> None:
    def statement(identifier: str, label: Any) -> dict[str, Any]:
        return {"sentence": "A box is empty.", "label": label, "identifier": identifier}

    rows = [
        statement("1-0", "true"),
        statement("2-0", "false"),
        statement("3-0", "true"),
        statement("1-0", "maybe"),
    ]
    files = {"dev.json": lines(*rows)}
    files |= {f"images/dev-{name}.png": "" for name in ("1-0-0", "1-0-1", "2-0-0")}
    records = read("nlvr:statements", "*.json", files, "images")
    assert rules(records) == [None, None, "missing_scene", "unknown_label"]
    first, second = records[0].pairs
    assert first.query_images == ("dev-1-0-0.png",)
    assert second.query_images == ("dev-1-0-1.png",)
    assert first.group_id == second.group_id != records[1].pairs[0].group_id
    assert first.target != records[1].pairs[0].target


def test_a_receipt_gives_a_question_a_key_and_its_text(read) -> None:
    keys = {"company": "ACME", "date": "1/2/2018", "total": " "}
    records = read("sroie:questions", "key/*.json", {"key/1.json": keys, "key/2.json": [], "key/3.json": "{"})
    assert rules(records) == [None, None, "missing_key", "missing_key", "not_an_object", "broken_json"]
    assert records[0].pairs[0].query_images == ("1.jpg",)
    boxes = {"box/1.csv": "1,2,3,4,5,6,7,8,NO. 5, 7 & 9\n\n1,2,3,4,5,6,7,8,TOTAL\n", "box/2.csv": "1,2,3\n"}
    whole, broken = read("sroie:transcript", "box/*.csv", boxes)
    assert whole.pairs[0].target == "NO. 5, 7 & 9\nTOTAL"
    assert rules([broken]) == ["broken_box"]
