"""Rules: every name is explained, wherever it is raised, and repetition is measured as it is described."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.rules import RULES, repetition_share, row_rules
from quality.validate import row_rules as validation_rules
from vipolyqwen_core.config import CurationSettings

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
    names = [rule.name for rule in (*row_rules(CurationSettings()), *validation_rules())]
    assert len(names) == len(set(names))
    assert set(names) <= set(RULES)
    for name, sentence in RULES.items():
        assert name == name.lower()
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("ha " * 50, 0.99, 1.0),
        ("rất hay " * 20, 0.99, 1.0),
        ("一二三" * 40, 0.97, 1.0),
        ("哈" * 100, 1.0, 1.0),
        ("the same line\n" * 10, 0.99, 1.0),
        ("the same line\n" * 5 + "and one that is quite a bit longer than all of these are", 0.5, 0.6),
        ("A man rides a horse along the river while his dog runs ahead of him.", 0.0, 0.3),
        ("", 0.0, 0.0),
    ],
)
def test_repetition_share(text: str, low: float, high: float) -> None:
    assert low <= repetition_share(text) <= high


@given(st.text(max_size=80))
def test_repetition_is_a_share(text: str) -> None:
    assert 0.0 <= repetition_share(text) <= 1.0
