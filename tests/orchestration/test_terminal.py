"""A person's terminal and the log of the factory do not mix."""

from tests.hung_up import run_hung_up

PROGRAM = """
import sys
from pathlib import Path
from orchestration.terminal import undisturbed
with undisturbed(Path(sys.argv[1])) as console:
    console.print("lost")
    print("kept")
"""


def test_a_run_whose_terminal_is_gone_keeps_its_log(tmp_path):
    log = tmp_path / "factory.log"
    assert run_hung_up("-c", PROGRAM, str(log)) == 0
    assert log.read_text() == "kept\n"
