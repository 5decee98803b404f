"""A person's terminal and the log of the factory do not mix."""

import subprocess
import sys

from tests.hung_up import run_hung_up

GONE = """
import sys
from pathlib import Path
from orchestration.terminal import undisturbed
with undisturbed(Path(sys.argv[1])) as console:
    console.print("lost")
    print("kept")
"""


def test_a_run_whose_terminal_is_gone_keeps_its_log(tmp_path):
    log = tmp_path / "factory.log"
    assert run_hung_up("-c", GONE, str(log)) == 0
    assert log.read_text() == "kept\n"


TWO = """
import sys
from pathlib import Path
from orchestration.terminal import undisturbed
log = Path(sys.argv[1])
with undisturbed(log):
    print("a training of days")
    with undisturbed(log):
        print("refused")
    print("goes on")
with undisturbed(log):
    print("the next one")
"""


def test_a_command_beside_another_one_adds_to_its_log(tmp_path):
    log = tmp_path / "factory.log"
    subprocess.run([sys.executable, "-c", TWO, str(log)], check=True)
    assert log.read_text() == "the next one\n"
    assert (tmp_path / "factory.log.1").read_text() == "a training of days\nrefused\ngoes on\n"
    assert not (tmp_path / "factory.log.2").exists()
