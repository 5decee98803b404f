"""What a person reads of a corpus: text for a terminal, never a command to it."""

import io
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from rich.console import Console

from orchestration.factory import FactoryOutcome, StageOutcome
from orchestration.summary import print_examples, print_summary, print_trace
from quality.trace import Step
from tests.core.small_evaluation import evaluation, pool
from vipolyqwen_core.serving.search import Hit
from vipolyqwen_core.terminal import hits_table
from vipolyqwen_core.workspace import Workspace

NAME = "a\x1b]0;owned\x07.jsonl:1"
SHOWN = "a\ufffd]0;owned\ufffd.jsonl:1"


def test_a_trace_prints_control_sequences_as_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = Step("source", "read", NAME, (("query", "mot\x1b[2J hai"),))
    monkeypatch.setattr("quality.trace.trace", lambda *_: [step])
    file = io.StringIO()
    print_trace("abcdef", Workspace(tmp_path), Console(width=200, file=file))
    assert file.getvalue() == f"source read {SHOWN}\n    query: mot\ufffd[2J hai\n"


def test_hits_print_control_sequences_as_text() -> None:
    file = io.StringIO()
    hit = Hit(1, 0.5, "odd", "instr", "query", "vi", "mot\x1b[2J", NAME, (), "id")
    Console(width=200, file=file).print(hits_table([hit], "hits"))
    assert SHOWN in file.getvalue()
    assert "mot\ufffd[2J" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_warnings_are_one_line_each_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluation(pool()).write(tmp_path)
    registered = {"version": 1, "model": "m", "alias": "champion", "decision": "better"}
    stages = (
        StageOutcome("evaluation_report", None, 1.0, {"folder": str(tmp_path)}),
        StageOutcome("registered_model", None, 1.0, registered),
    )
    monkeypatch.setattr("orchestration.summary.print_examples", lambda *_: None)
    file, warning = io.StringIO(), "word " * 40 + "end"
    print_summary(FactoryOutcome(stages, (warning,)), Workspace(tmp_path), Console(width=80, file=file))
    assert f"warning: {warning}\n" in file.getvalue()


def test_the_target_of_an_example_is_one_line_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = "x" * 79
    sides = SimpleNamespace(items=lambda requests: [SimpleNamespace(images=()) for _ in requests])
    for name, found in {
        "vipolyqwen_core.serving.search.search": [],
        "vipolyqwen_core.serving.stored_sides.StoredSides": sides,
        "vipolyqwen_core.serving.stored_sides.read_split": pa.table({"task": ["ocr"]}),
        "vipolyqwen_core.serving.stored_sides.side_texts": [target],
        "vipolyqwen_core.training.identity.data_version": "v",
    }.items():
        monkeypatch.setattr(name, lambda *_, found=found, **__: found)
    file = io.StringIO()
    print_examples(Workspace(tmp_path), Console(width=80, file=file))
    assert f"the pair's own target: {target}\n" in file.getvalue()
