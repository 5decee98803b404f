"""Rules: every name is explained, wherever it is raised, and repetition is measured as it is described."""

import ast
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.rules import RULES, answered, first_failure, repetition_share, row_rules
from quality.validate import tagged_rules
from tests.quality.conftest import sentence
from vipolyqwen_core.config import CurationSettings, TextLimits, from_json, to_json
from vipolyqwen_core.contract import Task

CODE = Path(__file__).resolve().parents[2]
RAISED = {"RecordError": 0, "PictureError": 0, "Rejection": 0, "ItemError": 1, "RowRule": 0}
"""Callables that take the name of a rule, and where."""


def names_in_code() -> set[str]:
    found = set()
    for package in ("vipolyqwen_core/corpus", "vipolyqwen_core/processing", "quality"):
        for file in (CODE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
                    given_ = node.args[RAISED[node.func.id] :][:1]
                    found |= {arg.value for arg in given_ if isinstance(arg, ast.Constant)}
    return found


def test_every_rule_that_is_raised_is_explained() -> None:
    names = names_in_code()
    assert {"broken_json", "missing_image", "pictures_too_long", "answer_in_query"} <= names
    assert names <= set(RULES)


def test_every_rule_of_rows_is_explained_by_one_sentence() -> None:
    names = [rule.name for rule in (*row_rules(CurationSettings()), *tagged_rules())]
    assert len(names) == len(set(names))
    assert set(names) <= set(RULES)
    for name, meaning in RULES.items():
        assert name == name.lower()
        assert meaning.endswith(".")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("ha " * 50, 0.99, 1.0),
        ("rất hay " * 20, 0.99, 1.0),
        ("一二三" * 40, 0.97, 1.0),
        ("哈" * 100, 1.0, 1.0),
        ("the same line\n" * 10, 0.99, 1.0),
        ("the same line\n" * 5 + "and one that is quite a bit longer than all of these are", 0.5, 0.6),
        ("".join(f"Chương {i} {'.' * 150} {i * 7}\n" for i in range(1, 9)), 0.0, 0.7),
        ("| Tên | Giá |\n" + f"| {'-' * 190} | {'-' * 190} |\n" + "| Phở bò tái | 45.000 |", 0.0, 0.5),
        ("Họ và tên:" + " ." * 60 + " Lớp:" + "_" * 60, 0.0, 0.5),
        ("Họ và tên:" + "." * 1000, 0.9, 1.0),
        ("Hay quá" + "." * 150, 0.9, 1.0),
        ("-" * 150 + "\nTiêu đề\n" + "-" * 150, 0.9, 1.0),
        ("." * 150, 1.0, 1.0),
        ("-" * 150 + "\n" + "-" * 150, 0.9, 1.0),
        ("A man rides a horse along the river while his dog runs ahead of him.", 0.0, 0.3),
        ("", 0.0, 0.0),
    ],
)
def test_repetition_share(text: str, low: float, high: float) -> None:
    assert low <= repetition_share(text) <= high


@given(st.text(max_size=80))
def test_repetition_is_a_share(text: str) -> None:
    assert 0.0 <= repetition_share(text) <= 1.0


def test_limits_are_those_of_the_task() -> None:
    limits = {Task.OCR: TextLimits(max_repetition=1.0, max_chars=5000), Task.INSTR: TextLimits(min_chars=10)}
    settings = CurationSettings(max_chars=300, by_task=limits)
    texts = {"long": sentence(1, 100), "repeated": "ha " * 50, "short": "ngắn", "middle": sentence(1, 30)}
    rows = pl.DataFrame(
        [
            {"task": task.value, "text": name, "query": "Một câu hỏi đủ dài?", "target": text}
            for task in (Task.OCR, Task.INSTR, Task.TEXT_PAIR)
            for name, text in texts.items()
        ]
    ).with_columns(
        query_images=pl.when(pl.col("task") == "ocr").then(pl.lit(["id"])),
        target_images=pl.lit(None, dtype=pl.List(pl.String)),
        score=pl.lit(None, dtype=pl.Float32),
    )
    judged = first_failure(rows, row_rules(settings)).filter(pl.col("rule").is_not_null())
    assert set(judged.select("task", "text", "rule").iter_rows()) == {
        ("instr", "long", "target_too_long"),
        ("instr", "repeated", "repetitive_target"),
        ("instr", "short", "target_too_short"),
        ("text_pair", "long", "target_too_long"),
        ("text_pair", "repeated", "repetitive_target"),
    }


EVERYDAY = CurationSettings()


def rule_of(settings: CurationSettings = EVERYDAY, **columns: object) -> str | None:
    """The rule that one row fails first."""
    row = {"task": "instr", "query": "Câu này nói gì?", "target": "Một câu.", "score": None, **columns}
    schema = {"score": pl.Float32, "query_images": pl.List(pl.String), "target_images": pl.List(pl.String)}
    rows = pl.DataFrame([{"query_images": None, "target_images": None, **row}], schema_overrides=schema)
    rule: str | None = first_failure(rows, row_rules(settings))["rule"].item()
    return rule


def test_texts_are_kept_up_to_their_limits() -> None:
    settings = CurationSettings(min_chars=5, max_chars=8)
    sides = {"query": "12345", "target": "12345678"}
    assert rule_of(settings, **sides) is None
    assert rule_of(settings, **{**sides, "query": "1234"}) == "query_too_short"
    assert rule_of(settings, **{**sides, "target": "123456789"}) == "target_too_long"
    assert rule_of(target="是") is None


def test_a_side_with_a_picture_may_say_less_than_one_without() -> None:
    settings = CurationSettings(min_chars=5)
    assert rule_of(settings, task="ocr", query="Gì?", query_images=["id"]) is None
    assert rule_of(settings, query="Gì?") == "query_too_short"


@pytest.mark.parametrize(
    ("score", "rule"),
    [
        (0.0, None),
        (1.0, None),
        (-0.01, "score_out_of_range"),
        (1.01, "score_out_of_range"),
        (float("nan"), "score_out_of_range"),
    ],
)
def test_a_score_lies_between_zero_and_one(score: float, rule: str | None) -> None:
    assert rule_of(task="text_pair", score=score) == rule


def test_of_several_rules_that_a_row_fails_the_first_is_named() -> None:
    settings = CurationSettings(max_chars=100)
    assert rule_of(settings, task="ocr", query="ha " * 50, target="") == "no_picture"
    assert rule_of(settings, target="ha " * 50) == "target_too_long"


def test_a_target_that_shows_a_picture_besides_is_no_repetition_of_its_query() -> None:
    same = {"query": "Một con mèo.", "target": "Một con mèo."}
    assert rule_of(**same) == "answer_in_query"
    assert rule_of(**same, target_images=["id"]) is None


def test_what_is_said_twice_is_not_repeated_and_two_lost_letters_are_a_slip() -> None:
    twice = "Câu này dài và được nói hai lần, như ở cuối một bức thư hay một bài hát nào đó.\n" * 2
    assert repetition_share(twice) < 0.5
    assert rule_of(target="Ti?ng Vi?t") is None
    assert rule_of(target="Ti?ng Vi?t r?t") == "undecoded_target"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ti?ng Vi?t r?t hay", "undecoded_target"),
        ("Vi\ufffdt Nam \ufffd\ufffdc l\ufffdp", "undecoded_target"),
        ("\ufffd" * 50, "undecoded_target"),
        ("Bạn đi đâu?Tôi đi học. Ai?Tôi. Tại sao?Vì tôi muốn học tiếng Việt với bạn.", None),
        ("你叫什么名字?我叫小明。你几岁?我六岁。真的?真的。", None),
        ("Ai?Tôi. Đâu?Đây. Gì?Kia.", None),
        ("café\ufffd", None),
        ("x = a?b:c", None),
        ("????? ??? ??, ???? ????!", "undecoded_target"),
        ("??????????", "undecoded_target"),
        ("2 ???: (????? ???????)", "undecoded_target"),
        ("Samsung: ???????? ?????????, ??? ????", "undecoded_target"),
        ("???", None),
        ("Sao????????", None),
        ("Gì vậy ????????", None),
        ("Hả??? Gì??? Sao????", None),
        ("3 + ? = 5, 2 + ? = 7, 1 + ? = 2, 4 + ? = 9, ? + ? = 8", None),
    ],
)
def test_a_text_whose_letters_are_lost_is_told_from_questions(text: str, expected: str | None) -> None:
    rows = pl.DataFrame([{"task": "instr", "query": "Câu này nói gì?", "target": text}]).with_columns(
        query_images=pl.lit(None, dtype=pl.List(pl.String)),
        target_images=pl.lit(None, dtype=pl.List(pl.String)),
        score=pl.lit(None, dtype=pl.Float32),
    )
    assert first_failure(rows, row_rules(CurationSettings()))["rule"].item() == expected


@pytest.mark.parametrize(
    ("text", "is_empty"),
    [
        ("", True),
        ("\u200d", True),
        ("\ufe0f \ufe0f", True),
        ("\u3164\u2800\n\uffa0", True),
        ("\u0301", True),
        ("👩\u200d🔬", False),
        ("-", False),
        ("\u200dvâng", False),
    ],
)
def test_a_text_in_which_nothing_is_seen_is_empty(text: str, is_empty: bool) -> None:
    rows = pl.DataFrame([{"task": "instr", "query": "Câu này nói gì?", "target": text}]).with_columns(
        query_images=pl.lit(None, dtype=pl.List(pl.String)),
        target_images=pl.lit(None, dtype=pl.List(pl.String)),
        score=pl.lit(None, dtype=pl.Float32),
    )
    rule = first_failure(rows, row_rules(CurationSettings()))["rule"].item()
    assert (rule == "empty_target") == is_empty


def test_limits_by_task_survive_json() -> None:
    settings = CurationSettings(by_task={Task.OCR: TextLimits(max_chars=9)})
    assert from_json(CurationSettings, to_json(settings)) == settings
    with pytest.raises(ValueError, match=r"by_task\.ocr\.max_chars"):
        from_json(CurationSettings, '{"by_task": {"ocr": {"max_chars": 0}}}')


QUESTION = "Câu nào mạnh hơn?"
FIRST, SECOND = "Sản phẩm của chúng tôi là tốt nhất.", "Sản phẩm của chúng tôi đáng tin cậy nhất."


@pytest.mark.parametrize(
    ("query", "target", "expected"),
    [
        (f"Sửa câu này: {FIRST}", FIRST, True),
        (f"{QUESTION}\n{FIRST}", FIRST, True),
        # one of several options, which happens to be the last
        (f"{QUESTION} Câu A: {FIRST}\nCâu B: {SECOND}", f"Câu B: {SECOND}", False),
        (f"{QUESTION}\nA. {FIRST}\nB. {SECOND}", f"B. {SECOND}", False),
        (f"{QUESTION} (1) {FIRST} (2) {SECOND}", f"(2) {SECOND}", False),
        (f"{QUESTION}\na) {FIRST}\nb) {SECOND}", f"b) {SECOND}", False),
        (f"{QUESTION}\nA/ {FIRST}\nB/ {SECOND}", f"B/ {SECOND}", False),
        (f"{QUESTION}\n①{FIRST}②{SECOND}", f"②{SECOND}", False),
        (f"{QUESTION}\n(A) {FIRST}\n(B) {SECOND[:-1]}", f"(B) {SECOND}", False),
        # the same, named without its label
        (f"{QUESTION}\nA. {FIRST}\nB. {SECOND}", SECOND, False),
        (f"{QUESTION} a) {FIRST[:-1]} b) {SECOND}", SECOND, False),
        (f"{QUESTION}\nA/ {FIRST}\nB/ {SECOND}", SECOND[:-1], False),
        (f"{QUESTION}\n①{FIRST}②{SECOND}", SECOND, False),
        (f"{QUESTION}\nA. Không phải: {SECOND}\nB. {SECOND}", SECOND, False),
        (f"[INST] {QUESTION}\nA. {FIRST}\nB. {SECOND} [/INST]", SECOND, False),
        # what one says is no option
        (f"A: {FIRST}\nB: {SECOND}", SECOND, True),
        # the answer was put behind the options
        (f"{QUESTION}\nA. {FIRST}\nB. {SECOND}\nĐáp án: {SECOND}", SECOND, True),
        (f"{QUESTION}\nA. {FIRST}\nB. {SECOND}\nĐáp án: B. {SECOND}", SECOND, True),
        (f"{QUESTION}\nA. {FIRST}\nB. {SECOND}\nB. {SECOND}", f"B. {SECOND}", True),
        # the same, where tagging put the pictures in front
        (f"<image><image>A. {FIRST}\nB. {SECOND}", f"B. {SECOND}", False),
        (f"<image>\n{SECOND}", SECOND, True),
        # a label, but nothing to choose from
        (f"{QUESTION}\nA. {FIRST}", f"A. {FIRST}", True),
        (f"{QUESTION}\nCâu A: {FIRST}", f"Câu A: {FIRST}", True),
        (f"{QUESTION} A: {FIRST}", FIRST, True),
        # marks of a chat, quotes and full stops at the ends
        (f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{FIRST}<|im_end|>", FIRST, True),
        (f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n", QUESTION * 3, False),
        (f"<s>[INST] {QUESTION} [/INST] {FIRST} </s>", FIRST, True),
        (f"{QUESTION} Đáp án: “{FIRST}”", FIRST, True),
        (f"{QUESTION} Đáp án: {FIRST}", FIRST[:-1], True),
        (f"{QUESTION} Đáp án: {FIRST[:-1]}", FIRST, True),
        (QUESTION + "." * 40, "." * 40, True),
        # words of a sentence that ends with them, as answers that were cut out of a text
        (f"{QUESTION}\nAi cũng biết sản phẩm {SECOND}", SECOND[:-1], False),
    ],
)
def test_an_answer_behind_its_question_is_found_and_the_last_of_several_options_is_none(
    query: str, target: str, expected: bool
) -> None:
    row = {"task": "instr", "query": query, "target": target, "target_images": []}
    schema = {"task": pl.String, "query": pl.String, "target": pl.String, "target_images": pl.List(pl.String)}
    assert pl.DataFrame([row], schema=schema).select(answered()).item() is expected
