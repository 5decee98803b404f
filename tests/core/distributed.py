"""Runs a function of a test on several gloo processes of this machine, and collects what each returns.

    def mean_of_ranks(values):
        value = torch.tensor(values[dist.get_rank()])
        dist.all_reduce(value)
        return value

    first, second = run_on_ranks(mean_of_ranks, 2, [1.0, 3.0])

The function must stand at the top level of a module, which the processes import anew. They are forked from a
server that has done the long imports (torch, transformers), and get the environment of the test.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LONG_IMPORTS = ["vipolyqwen_core.model.modeling", "accelerate", "torch.distributed.checkpoint.state_dict"]
"""Seven of the eight seconds that a rank which trains would import for. Not lance, which warns of forks."""


def run_on_ranks(
    function: Callable[..., Any], num_ranks: int, *arguments: Any, timeout_seconds: float = 600
) -> list[Any]:
    """`function(*arguments)` on each rank of a gloo group; the results in rank order.

    A rank that waits for another one that is gone, or for ever, ends the test after `timeout_seconds`.

    Raises:
        AssertionError: with the traceback of every rank that failed, or the ranks that hang
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(LONG_IMPORTS)
        environment = dict(os.environ)
        ranks = [
            context.Process(
                target=_run,
                args=(rank, num_ranks, folder, environment, function, arguments),
                daemon=True,
            )
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + timeout_seconds
        while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
            if time.monotonic() > deadline:
                break
            ranks[0].join(0.05)
        for process in ranks:  # those that a failed rank left waiting are ended; the others are done
            process.join(2.0)
        hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
            process.join()
        failures = [path.read_text() for path in sorted(folder.glob("*.error"))]
        dead = [(rank, process.exitcode) for rank, process in enumerate(ranks) if process.exitcode]
        assert not failures, "\n".join(failures)
        assert not hanging, f"ranks {hanging} hang: no end within {timeout_seconds} s"
        assert not dead, f"ranks died without a traceback (rank, exit code): {dead}"
        return [torch.load(folder / f"{rank}.result", weights_only=False) for rank in range(num_ranks)]


def _run(
    rank: int,
    num_ranks: int,
    folder: Path,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    size = str(num_ranks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # accelerate insists on it
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    try:
        torch.save(function(*arguments), folder / f"{rank}.result")
        dist.barrier()
    except BaseException:  # noqa: BLE001 (the parent raises it again)
        (folder / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)  # the others may be inside a collective: no farewell
    dist.destroy_process_group()
