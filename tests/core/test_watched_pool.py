"""Nobody waits for a result whose process is dead, at whatever moment that died."""

import errno
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from vipolyqwen_core.watched_pool import WatchedPool

SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from concurrent.futures.process import BrokenProcessPool
from vipolyqwen_core import watched_pool
from vipolyqwen_core.watched_pool import WatchedPool


class LongToRead:
    def __reduce__(self):
        return time.sleep, (2,)


def killed_while_it_writes():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(1_000_000)  # of which a pipe takes a part


def in_parts(pool):
    return [pool.submit(LongToRead), pool.submit(killed_while_it_writes), pool.submit(os.getpid)]


if __name__ == "__main__":
    watched_pool.SECONDS_TO_NOTICE = 0.5
    context = multiprocessing.get_context(sys.argv[1])
    pool = WatchedPool(1, context)
    first, *others = in_parts(pool)
    first.result()
    for lost in others:
        try:
            print(lost.result(60))
        except BrokenProcessPool:
            print("told")
    try:
        pool.submit(os.getpid)
    except BrokenProcessPool:
        print("told again")
    pool.shutdown()
    with WatchedPool(2, context) as closed:  # while the second is lost
        in_parts(closed)
    print("closed")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_that_is_killed_amid_its_result_breaks_the_pool(tmp_path: Path, method: str) -> None:
    script = tmp_path / "caller.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), method]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment, timeout=100, check=True
    )
    assert done.stdout.split("\n") == ["told", "told", "told again", "closed", ""]


def test_a_process_that_the_system_does_not_start_is_told_with_what_it_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(process: SpawnProcess) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with WatchedPool(2, multiprocessing.get_context("spawn")) as pool:
        monkeypatch.setattr(SpawnProcess, "start", refused)
        with pytest.raises(ChildProcessError, match=r"not be started \(.*unavailable\): .* it wants memory"):
            pool.submit(os.getpid)
