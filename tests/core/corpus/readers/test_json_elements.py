"""A JSON document is read element by element, wherever its pieces are cut."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.corpus.readers import reading
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import RawPair, json_elements, read_source
from vipolyqwen_core.corpus.readers.json_elements import JsonWindow, elements_of_array, elements_of_arrays

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_elements_are_those_of_the_whole_wherever_it_is_cut(
    values: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    window = JsonWindow(pieces(text, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_elements, "MIN_CHARS", 1)
        assert window.peek() == "["
        assert [element.value for element in elements_of_array(window)] == values


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_broken_element_costs_only_itself_wherever_it_is_cut(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_elements, "MIN_CHARS", 1)
    text = json.dumps([{"a": f"số {number}", "b": [number]} for number in range(6)], indent=1)
    text = text.replace('"a": "s\\u1ed1 2"', '"a" "2"').replace('"s\\u1ed1 4"', '"bad \\q"')
    window = JsonWindow(pieces(text, size))
    window.peek()
    found = list(elements_of_array(window))
    assert [element.value["b"] for element in found if element.broken is None] == [[0], [1], [3], [5]]
    assert [number for number, element in enumerate(found) if element.broken] == [2, 4]


@pytest.mark.parametrize("space", ["\n", " ", "} ", "[\n", " ,\n"])
def test_the_search_for_the_next_object_passes_over_each_character_once(space: str) -> None:
    """Else blank lines behind a broken element would take hours."""
    text = f"x{space * 100_000}x\n {{}}"
    for or_list in (False, True):
        window = JsonWindow(iter([text]))
        assert window.seek_object(or_list)
        assert window.peek() == "{"


@pytest.mark.parametrize("size", [1, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("broken", ['"sa"id"', "said", '"said",,'])
def test_a_list_that_ends_within_a_broken_element_does_not_end_the_document(
    broken: str, indent: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_elements, "MIN_CHARS", 1)
    rows = [{"turns": [{"text": "said"}, {"text": "told"}], "number": number} for number in range(6)]
    parts = [json.dumps(row, indent=indent) for row in rows]
    parts[2] = parts[2].replace('"said"', broken)
    for text in (f"[{','.join(parts)}]", f"[{','.join(parts)}][{parts[0]}]"):
        found = list(elements_of_arrays(JsonWindow(pieces(text, size))))
        read = [element.value for element in found if element.broken is None]
        assert [value["number"] for value in read if value.get("number")] == [1, 3, 4, 5]
        assert len(read) < len(found)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("start", ["[", '{"version": 1, "data": ['])
def test_a_broken_element_costs_only_itself_in_an_object_too(
    tmp_path: Path, start: str, indent: int | None
) -> None:
    parts = [json.dumps({"instruction": f"i{n}", "output": "o"}, indent=indent) for n in range(6)]
    parts[3] = parts[3].replace('"o"', '"o" "p"')
    text = start + ",\n".join(parts) + ("]" if start == "[" else "]}")
    whole = "i0 i1 i2 i4 i5"
    spread = text.replace("]", "\n]")  # its last element is a line of its own, as in JSON Lines
    for content, good in ((text, whole), (spread, whole), (text[:-9], "i0 i1 i2 i4")):  # the last one is cut
        (tmp_path / "a.json").write_text(content)
        records = list(read(tmp_path / "a.json"))
        assert " ".join(record.pairs[0].query for record in records if record.pairs) == good
        assert {record.rejection.rule for record in records if record.rejection} == {"broken_json"}


def test_lines_of_which_the_first_is_broken_are_lines(tmp_path: Path) -> None:
    """However much they look like an object with a list in it."""
    line = json.dumps({"history": [["a", "b"]], "instruction": "i", "output": "o", "more": [{"n": 1}]})
    for number in (1, 3):
        (tmp_path / "a.json").write_text("\n".join([line[:-1], *[line] * number]))
        assert [bool(record.pairs) for record in read(tmp_path / "a.json")] == [False, *[True] * number]
    (tmp_path / "a.json").write_text(f"{line[:-1]}\n{line[:-1]}")
    assert [record.line for record in read(tmp_path / "a.json")] == [1, 2]


def test_an_element_after_a_brace_too_many_is_read(tmp_path: Path) -> None:
    good = '{"instruction": "a", "output": "b"}'
    (tmp_path / "a.json").write_text(f"[{good}}},{good},{good}]")
    assert [bool(record.pairs) for record in read(tmp_path / "a.json")] == [True, False, True, True]


def read(path: Path) -> Iterator[Any]:
    source = Source(name="s", format=Format.ALPACA, task=Task.INSTR, paths=(str(path),))
    return read_source(source)


@pytest.mark.parametrize("start", ["[", '{"info": {"n": 1}, "data": [', '{"a": 1, "b": [1], "data": ['])
def test_a_large_document_takes_the_memory_of_a_few_elements(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one line, as `json.dump` writes it."""
    monkeypatch.setattr(json_elements, "MAX_ELEMENT_CHARS", 40_000)
    monkeypatch.setattr("vipolyqwen_core.corpus.readers.files.PIECE_BYTES", 20_000)
    end = "]" if start == "[" else '], "more": null}'
    with (tmp_path / "a.json").open("w", encoding="utf-8") as file:
        file.write(start)
        for number in range(3_000):
            row = {"instruction": f"việc {number}", "output": "xong " * 100}
            file.write((", " if number else "") + json.dumps(row, ensure_ascii=False))
        file.write(end)
    num_bytes = (tmp_path / "a.json").stat().st_size
    tracemalloc.start()
    count = sum(len(record.pairs) for record in read(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3_000
    assert peak < num_bytes / 2


def test_an_element_without_end_is_broken_and_not_the_whole_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_elements, "MAX_ELEMENT_CHARS", 5_000)
    monkeypatch.setattr(json_elements, "MIN_CHARS", 1)
    monkeypatch.setattr("vipolyqwen_core.corpus.readers.files.PIECE_BYTES", 1_000)
    good = '{"instruction": "a", "output": "b"}'
    endless = '{"instruction": "' + "x" * 20_000 + '"}'
    (tmp_path / "a.json").write_text(f"[{good},\n{endless},\n{good}\n]")
    first, second, third = read(tmp_path / "a.json")
    assert first.pairs
    assert third.pairs
    assert second.rejection is not None
    assert second.rejection.rule == "broken_json"


def test_a_text_that_is_cut_within_a_character_stays_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vipolyqwen_core.corpus.readers.files.PIECE_BYTES", 3)
    rows = [{"instruction": "đường 收据 😀", "output": "được"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (record,) = read(tmp_path / "a.json")
    assert (record.pairs[0].query, record.pairs[0].target) == ("đường 收据 😀", "được")


@pytest.mark.parametrize("between", ["\n", "", "\ufeff", ",\n"])
def test_arrays_that_were_put_together_are_all_read(tmp_path: Path, between: str) -> None:
    part = json.dumps([{"instruction": "a", "output": "b"}] * 2)
    (tmp_path / "a.json").write_text(f"{part}{between}{part}", encoding="utf-8")
    assert [record.line for record in read(tmp_path / "a.json") if record.pairs] == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 10_000])
def test_what_follows_an_array_is_no_record_and_is_named(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_elements, "MIN_CHARS", size)
    part = json.dumps([{"instruction": "a", "output": "b"}])
    (tmp_path / "a.json").write_text(f"{part} <html>")
    first, second = read(tmp_path / "a.json")
    assert first.pairs
    assert second.rejection is not None
    assert (second.line, second.rejection.rule) == (2, "broken_json")
    assert "<html>" in second.rejection.value
    (tmp_path / "a.json").write_text(f'{part[:-1]}, {{"instruction": "a", "out')  # breaks off: one rejection
    assert [record.rejection is None for record in read(tmp_path / "a.json")] == [True, False]


def test_every_list_of_an_object_is_read_after_a_broken_element(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_elements, "MAX_ELEMENT_CHARS", 100)
    monkeypatch.setattr(json_elements, "MIN_CHARS", 1)
    monkeypatch.setattr("vipolyqwen_core.corpus.readers.files.PIECE_BYTES", 20)
    parts = [json.dumps({"instruction": f"i{n}", "output": "o"}) for n in range(6)]
    parts[1] = parts[1].replace('"o"', '"o" "p"')
    text = f'{{"train": [{",".join(parts[:3])}], "n": 3, "dev": [{",".join(parts[3:])}]}}'
    (tmp_path / "a.json").write_text(text)
    queries = [record.pairs[0].query for record in read(tmp_path / "a.json") if record.pairs]
    assert queries == ["i0", "i2", "i3", "i4", "i5"]
    (tmp_path / "a.json").write_text(f'{{"train": [{parts[0]}, {parts[2]}, {parts[3]}], "n": oops}}')
    assert [record.rejection is None for record in read(tmp_path / "a.json")] == [True] * 3 + [False]


def test_of_several_lists_of_records_none_is_taken_for_the_only_one(tmp_path: Path) -> None:
    record, strange = {"instruction": "a", "output": "b"}, {"note": 1}
    for lists, rules in (
        ({"train": [record], "dev": [record]}, ["missing_field"]),
        ({"data": [strange, record], "more": [strange]}, ["missing_field", None]),
    ):
        (tmp_path / "a.json").write_text(json.dumps(lists))
        found = [record.rejection and record.rejection.rule for record in read(tmp_path / "a.json")]
        assert found == rules


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_number_is_the_text_that_stands_in_the_file(tmp_path: Path, name: str) -> None:
    keys: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}
    line = '{"query": 1.10, "target": 1e5, "score": 3.0, "group_id": 7.0, "positive_key": 7.5}'
    content = line if name == "a.jsonl" else f"[{line}]"
    (record,) = reading.read(tmp_path, name, content, score_range=(1.0, 5.0), **keys)
    pair = RawPair(Task.TEXT_PAIR, "1.10", "1e5", score=0.5, group_id="7", positive_key="7.5")
    assert record.pairs == (pair,)
    assert type(record.pairs[0].score) is float
    (record,) = reading.read(tmp_path, name, content.replace("1e5", "1e999"), **keys)
    assert reading.rules([record]) == ["wrong_type"]


@pytest.mark.parametrize("between", ["\n", "", "\n\n"])
@pytest.mark.parametrize("indent", [None, 1])
def test_records_one_behind_the_other_are_read_however_many_lines_they_take(
    tmp_path: Path, between: str, indent: int | None
) -> None:
    texts = [json.dumps({"instruction": str(n), "output": "o"}, indent=indent) for n in range(5)]
    texts[2] = texts[2].replace('"2"', '"2" "x"')
    (tmp_path / "a.json").write_text(between.join(texts))
    records = list(read(tmp_path / "a.json"))
    whole = [0, 1, 3, 4] if between else [0, 1]  # what follows a broken one begins a line
    assert [record.pairs[0].query for record in records if record.pairs] == [str(n) for n in whole]
    assert [record.rejection.rule for record in records if record.rejection] == ["broken_json"]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_record_of_several_lines_costs_only_itself(tmp_path: Path, broken: int) -> None:
    texts = [json.dumps({"instruction": str(n), "output": "o"}, indent=1) for n in range(4)]
    texts[broken] = texts[broken].replace('"o"', '"o" "p"')
    (tmp_path / "a.json").write_text("\n".join(texts))
    assert [record.rejection is not None for record in read(tmp_path / "a.json")] == [
        number == broken for number in range(4)
    ]


def test_lines_of_which_half_are_broken_are_lines(tmp_path: Path) -> None:
    good, inner = '{"instruction": "a", "output": "b"}', '{"instruction": "a", "output": "b", "more": [\\n '
    (tmp_path / "a.json").write_text(f"{good}\n{inner}{good}]\n")
    assert [record.rejection is None for record in read(tmp_path / "a.json")] == [True, False]


def test_a_line_of_a_record_of_several_lines_says_which_files_may_hold_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}, indent=1))
    first, *_ = read(tmp_path / "a.jsonl")
    assert first.rejection is not None
    assert first.rejection.reason.endswith("records of several lines, are read from a file called .json")
