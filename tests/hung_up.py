"""Commands whose terminal is closed before they are done."""

import os
import pty
import subprocess
import sys
from pathlib import Path


def run_hung_up(*arguments: str, after: bytes = b"") -> int:
    """The exit code of a Python command whose terminal is closed at once, or when it has shown this."""
    person, process = pty.openpty()
    root = Path(__file__).parents[1]
    shown = b""
    with subprocess.Popen([sys.executable, *arguments], stdout=process, stderr=process, cwd=root) as command:
        os.close(process)
        while after not in shown:
            shown += os.read(person, 4096)
        os.close(person)
        return command.wait()
