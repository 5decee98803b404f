"""Runs the benchmarks: `make bench`, or `python -m tests.benchmarks [name ...]` for some of them.

A benchmark is a module `bench_NAME.py` here with a function `run() -> list[str]` that measures and returns
the lines of a Markdown table. What is compared is compared side by side in one run: ratios first. The last
figures, with machine and commit, stand in RESULTS.md beside this file.
"""

import importlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vipolyqwen_core.workspace import configure, current_workspace

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"


def machine() -> str:
    """One line that says where the figures come from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def commit() -> str:
    """The commit that was measured, marked where the tree differs from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def record(name: str, lines: list[str], seconds: float) -> None:
    """Put a benchmark's section into RESULTS.md in place of its last one."""
    head = "# Last figures of the benchmarks\n\nWritten by `make bench`; each module says what it measures.\n"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else head
    section = "\n".join(
        [
            f"\n## {name}\n",
            f"`python -m tests.benchmarks {name}` on {machine()}; commit {commit()}, {seconds:.0f} s.\n",
            *lines,
            "",
        ]
    )
    text = re.sub(rf"\n## {re.escape(name)}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    RESULTS.write_text(text.rstrip("\n") + "\n" + section, encoding="utf-8")


def run_and_record(name: str, run: Callable[..., list[str]], *arguments: Any) -> None:
    """Run a benchmark, print its lines and record them."""
    started = time.perf_counter()
    lines = run(*arguments)
    print("\n".join(lines), flush=True)
    record(name, lines, time.perf_counter() - started)


def scratch_folder() -> Path | None:
    """Where a benchmark that is run by itself may leave its corpus for the next run; None: nowhere."""
    folder = os.environ.get("VIPOLYQWEN_BENCH_FOLDER")
    return Path(folder) if folder else None


def main() -> None:
    """Run the named benchmarks, or all."""
    configure(current_workspace())
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    chosen = sys.argv[1:] or known
    for name in chosen:
        if name not in known:
            sys.exit(f"no benchmark {name!r}: there are {', '.join(known)}")
        print(f"== {name}", flush=True)
        run_and_record(name, importlib.import_module(f"tests.benchmarks.bench_{name}").run)
    print(f"recorded in {RESULTS}")


if __name__ == "__main__":
    main()
