"""Whoever prints to a terminal that was closed goes on."""

import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from tests.hung_up import run_hung_up
from vipolyqwen_core.standard_streams import outliving


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """The end of a terminal that a person sits at, and the one that a process writes to."""
    person, process = pty.openpty()
    with open(process, "w", encoding="utf-8", buffering=1) as stream:
        yield person, stream


def test_a_closed_terminal_takes_what_is_written(terminal):
    person, stream = terminal
    lasting = outliving(stream)
    print("ở đây", file=lasting)
    assert os.read(person, 100).decode() == "ở đây\r\n"
    assert lasting.isatty()
    os.close(person)
    print("lost", file=lasting)
    assert not lasting.isatty()


def test_other_failures_of_a_terminal_are_raised(terminal):
    person, stream = terminal
    lasting = outliving(stream)
    os.close(person)
    with open(os.devnull, "rb") as unwritable:
        os.dup2(unwritable.fileno(), stream.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        print("lost", file=lasting)
    with open(os.devnull, "wb") as nowhere:  # where what was kept back goes
        os.dup2(nowhere.fileno(), stream.fileno())


def test_a_file_stays_as_it_is(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        assert outliving(stream) is stream


def test_a_command_whose_terminal_is_gone_does_its_work():
    assert run_hung_up("-c", "print('lost', flush=True)") != 0  # as Python has it
    assert run_hung_up("-m", "vipolyqwen_core", "--version") == 0
    assert run_hung_up("-m", "vipolyqwen_core", "encode") == 2  # the complaint is lost, too
