"""What a person reads of a corpus: text for a terminal, never a command to it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestration.summary import print_trace
from quality.trace import Step
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
