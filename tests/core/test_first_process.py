"""The first process of a container ends at SIGTERM, which Linux delivers to it only where a handler is."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from vipolyqwen_core.first_process import heed_sigterm

os.getpid = lambda: {number}
{before}
heed_sigterm()
try:
    print("ready", flush=True)
    while True:
        time.sleep(60)
finally:
    print("left in order", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "before", "code", "said"),
    [
        (1, "", 143, "left in order\n"),
        (2, "", -signal.SIGTERM, ""),
        (1, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7, "left in order\n"),
    ],
)
def test_the_first_process_heeds_sigterm(number: int, before: str, code: int, said: str) -> None:
    """Any other process ends by itself, and a handler that is there already stays."""
    program = PROGRAM.format(number=number, before=before)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == said
        assert process.wait(timeout=30) == code


def test_every_command_heeds_it() -> None:
    """Before anything is imported that takes its time."""
    program = "import os; os.getpid = lambda: 1\nfrom vipolyqwen_core import __main__ as command\n"
    program += "command.mount_factory = lambda: None\n"
    program += "command.app = lambda: print(__import__('signal').getsignal(15).__module__)\ncommand.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "vipolyqwen_core.first_process\n", done.stderr
