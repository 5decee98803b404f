"""What is printed while a run works: all of it is somewhere, also where nobody reads it."""

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hung_up import run_hung_up

PRINTING = """
import sys
from pathlib import Path
from orchestration.undisturbed import undisturbed

with undisturbed(Path(sys.argv[1])) as console:
    console.print("first stage")
    print("a library")
    console.print("second stage")
"""


def printed(log: Path, output: int) -> subprocess.CompletedProcess[str]:
    """Two lines of a run and one of a library, to a standard output."""
    command = [sys.executable, "-c", PRINTING, str(log)]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)


def test_what_libraries_print_goes_to_the_log(tmp_path: Path) -> None:
    ended = printed(tmp_path / "log", subprocess.PIPE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "first stage\nsecond stage\n", "")
    assert (tmp_path / "log").read_text() == "a library\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_run_whose_output_cannot_be_written_goes_on_and_prints_to_the_log(tmp_path: Path) -> None:
    reader, gone = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for output, why in ((gone, "Broken pipe"), (full, "No space left on device")):
        ended = printed(tmp_path / "log", output)
        os.close(output)
        assert ended.returncode == 0
        assert ended.stderr == f"The output cannot be written ({why}): the rest of it is in {tmp_path}/log\n"
        lines = (tmp_path / "log").read_text().splitlines()
        assert sorted(lines) == ["a library", "first stage", "second stage"]


def test_a_run_whose_terminal_is_gone_goes_on_and_prints_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_hung_up("-c", PRINTING, str(log)) == 0
    assert sorted(log.read_text().splitlines()) == ["a library", "first stage", "second stage"]


TWO = """
import sys
from pathlib import Path
from orchestration.undisturbed import undisturbed
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


WITH_A_BAR = """
import sys
from pathlib import Path
from orchestration.progress import FactoryProgress
from orchestration.undisturbed import undisturbed

with undisturbed(Path(sys.argv[1])) as console, FactoryProgress(console, num_stages=2) as progress:
    progress.start("trained_model")
    print("a library")
    print("a library warns", file=sys.stderr)
    progress.finish("trained_model", "done")
"""


def test_what_libraries_print_goes_to_the_log_where_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    person, process = pty.openpty()
    command = [sys.executable, "-c", WITH_A_BAR, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=process, stderr=process, env={**os.environ, "TERM": "xterm"}):
        os.close(process)
        shown = b""
        with suppress(OSError):  # how Linux says that the terminal is closed
            while piece := os.read(person, 4096):
                shown += piece
    os.close(person)
    assert b"trained_model" in shown
    assert b"a library" not in shown
    assert (tmp_path / "log").read_text() == "a library\na library warns\n"
