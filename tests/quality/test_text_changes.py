"""Changes of a text are shown where they are, and can be seen."""

import random
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import pytest

from quality import text_changes
from quality.text_changes import MAX_COMPARED, changes, marked


def test_marked_texts_say_what_each_has_alone() -> None:
    left, right = marked("NO: 28,JALAN ASTANA", "NO: 28, JALAN BESAR")
    assert left == [("NO: 28,", False), ("JALAN ", False), ("ASTANA", True)]
    assert right == [("NO: 28,", False), (" ", True), ("JALAN ", False), ("BESAR", True)]
    left, right = marked("高兴", "高山")
    assert left == [("高", False), ("兴", True)]


def test_of_a_long_text_only_the_places_that_changed_are_shown() -> None:
    words = [f"từ{number}" for number in range(200)]
    before = " ".join(words)
    assert changes(before, "<image>" + before) == "từ0 từ1 từ2 … -> <image>từ0 từ1 từ2 …"
    after = before.replace("từ100", "chữ").replace("từ150", "chữ")
    first, second = changes(before, after).split("; ")
    assert first == "…từ97 từ98 từ99 từ100 từ101 từ102 từ103… -> …từ97 từ98 từ99 chữ từ101 từ102 từ103…"
    assert "từ150" in second
    scattered = " ".join("chữ" if number % 20 == 0 else word for number, word in enumerate(words))
    assert changes(before, scattered).endswith("; and 6 more places")


def test_what_cannot_be_seen_is_spelled() -> None:
    assert changes("e\u0301\tb\u00a0c", "é b c") == "e\\u0301\\tb\\xa0c -> é b c"


def long_text(words: int, seed: int, line: Callable[[int], str]) -> str:
    """100,000 characters of few words; `line` gives what stands after each."""
    draw = random.Random(seed)
    return "".join(f"từ{draw.randrange(words)}{line(number)}" for number in range(30_000))[:100_000]


LONG = {
    "one line": lambda number: " ",
    "lines of ten words": lambda number: " " if number % 10 else "\n",
    "lines of a word": lambda number: "\n",
}


@pytest.mark.parametrize("lines", LONG)
@pytest.mark.parametrize("other", ["another text", "a change in each line", "no double spaces"])
def test_of_the_longest_texts_a_bounded_part_is_compared(
    lines: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    matcher = text_changes._matcher

    def counted(ours: list[Any], theirs: list[Any]) -> "SequenceMatcher[Any]":
        nonlocal compared
        compared += len(ours) + len(theirs)
        return matcher(ours, theirs)

    before = long_text(20, 1, LONG[lines])
    after = {
        "another text": long_text(20, 2, LONG[lines]),
        "a change in each line": before.replace("từ1", "chữ1"),
        "no double spaces": "Đầu " + before.replace(" ", "  "),
    }[other]
    assert len(before) == 100_000
    monkeypatch.setattr(text_changes, "_matcher", counted)
    shown = changes(before, after)
    assert compared <= 2 * MAX_COMPARED
    assert " -> " in shown
    assert len(shown) < 5000


def test_a_place_that_differs_in_a_long_text_is_found_by_its_line() -> None:
    lines = [f"dòng {number} có vài chữ" for number in range(600)]
    before = "\n".join(lines)
    lines[3], lines[596] = "dòng khác 3 có vài chữ", "dòng 596 có nhiều chữ"
    first, second = changes(before, "\n".join(lines)).split("; ")
    assert first == "…vài chữ\\ndòng 3 có vài … -> …vài chữ\\ndòng khác 3 có vài …"
    assert "596 có vài" in second
    assert "596 có nhiều" in second


def test_of_a_place_that_is_long_the_beginning_is_shown() -> None:
    shown = changes("a b", "a " + "chữ " * 1000 + "b")
    assert shown.startswith("a b -> a chữ chữ ")
    assert shown.endswith("chữ …")
    assert len(shown) < 300
