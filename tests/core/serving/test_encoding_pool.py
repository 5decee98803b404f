"""Encoding by several processes gives the vectors of one, in their places."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from tests.core.small_training_set import some_pairs, write_training_set
from vipolyqwen_core.config import ExportSettings
from vipolyqwen_core.contract import Side, Split
from vipolyqwen_core.serving import encoding_pool
from vipolyqwen_core.serving.encoding_pool import EncodingPool, encoding_devices
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides
from vipolyqwen_core.training.identity import data_version
from vipolyqwen_core.workspace import Workspace

TWO = ("cpu", "cpu")
SETTINGS = ExportSettings(batch_tokens=512)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_set(tmp_path_factory.mktemp("set"), some_pairs())


def blocks(training_set: Path) -> list[tuple[StoredSides, list[SideRequest]]]:
    """Both sides of the evaluation pairs, in blocks of seven; one of the last is short."""
    sides = StoredSides(training_set, Split.EVAL, data_version(training_set))
    requests = [SideRequest(row, side) for row in range(len(sides.rows)) for side in Side]
    return [(sides, requests[start : start + 7]) for start in range(0, len(requests), 7)]


def test_two_processes_give_the_vectors_of_one_and_errors_with_their_block(
    training_set: Path, tiny_model_dir: Path
) -> None:
    found = []
    for devices in (("cpu",), TWO):
        with EncodingPool(tiny_model_dir, SETTINGS, devices) as pool:
            pending = [pool.submit(*block) for block in blocks(training_set)]
            if devices == TWO:
                sides = StoredSides(training_set, Split.EVAL, data_version(training_set))
                broken = pool.submit(sides, [SideRequest(10_000, Side.QUERY)])
                pending.append(pool.submit(sides, [SideRequest(0, Side.QUERY)]))
                with pytest.raises(ValueError, match="row 10000 was asked for"):
                    broken.result()
                assert len(pending.pop().result()) == 1
                older = StoredSides(training_set, Split.EVAL, "older")
                with pytest.raises(ValueError, match="was built anew meanwhile"):
                    pool.submit(older, [SideRequest(0, Side.QUERY)]).result()
            found.append(np.concatenate([future.result() for future in pending]))
    assert np.array_equal(*found)


@pytest.mark.slow
def test_an_export_by_two_processes_equals_one(
    tmp_path: Path, training_set: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for name, devices in (("one", ("cpu",)), ("two", TWO)):
        monkeypatch.setattr(encoding_pool, "encoding_devices", lambda devices=devices: devices)
        place = Workspace(tmp_path / name)
        summary = export(training_set, tiny_model_dir, "1", place, SETTINGS)
        assert summary.encoded == 2 * len(some_pairs())
        # in which order a table's rows are packed together is up to Lance
        tables.append(
            pq.read_table(summary.parquet).sort_by([("sample_id", "ascending"), ("side", "ascending")])
        )
    assert tables[0].equals(tables[1])


def encode_while_the_workers_are_killed(training_set: Path, model: Path) -> None:
    with EncodingPool(model, SETTINGS, TWO) as pool:
        first, *others = [pool.submit(*block) for block in blocks(training_set)]
        first.result()
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        for future in [*others, pool.submit(*blocks(training_set)[0])]:
            future.result()


def test_a_worker_that_was_killed_ends_the_work_with_a_sentence(
    training_set: Path, tiny_model_dir: Path
) -> None:
    with pytest.raises(ChildProcessError, match=r"one of the 2 processes that encode.* is kept"):
        encode_while_the_workers_are_killed(training_set, tiny_model_dir)


def test_without_a_gpu_there_is_one_device_and_with_some_each_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoding_devices() == ("cpu",)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert encoding_devices() == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(("cores", "threads"), [(6, 3), (1, 1)])
def test_each_process_has_a_device_of_its_own_and_a_share_of_the_threads(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    given = Mock()
    monkeypatch.setattr(encoding_pool, "WatchedPool", given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    pool = EncodingPool(tiny_model_dir, SETTINGS, ("cuda:0", "cuda:1"))
    pool._started()
    assert given.call_args.args[0] == 2
    _, devices, _, shared = given.call_args.kwargs["initargs"]
    assert [devices.get(), devices.get()] == ["cuda:0", "cuda:1"]
    assert shared == threads
    assert pool.most_pending >= 2


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.core.serving.test_encoding_pool import SETTINGS, TWO, blocks
from vipolyqwen_core.serving.encoding_pool import EncodingPool
import multiprocessing, time
if __name__ == "__main__":
    with EncodingPool(Path(sys.argv[1]), SETTINGS, TWO) as pool:
        for future in [pool.submit(*block) for block in blocks(Path(sys.argv[2]))]:
            future.result()
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_no_process_outlives_a_caller_that_was_killed(
    tmp_path: Path, training_set: Path, tiny_model_dir: Path
) -> None:
    script = tmp_path / "caller.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tiny_model_dir), str(training_set)]
    root = Path(__file__).resolve().parents[3]
    caller = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of a killed process, Python's tracker tells what it leaves behind
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert caller.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in caller.stdout.readline().split()]
    assert len(workers) == 2
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.slow
def test_compiled_layers_give_the_same_vectors(training_set: Path, tiny_model_dir: Path) -> None:
    found = []
    for compiled in (False, True):
        with EncodingPool(tiny_model_dir, replace(SETTINGS, compile_layers=compiled), ("cpu",)) as pool:
            found.append(np.concatenate([pool.submit(*block).result() for block in blocks(training_set)]))
    assert not np.array_equal(*found)  # another order of rounding: compiled they were
    assert (found[0] * found[1]).sum(1).min() > 0.999999
