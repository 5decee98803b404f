"""What ranks tell each other besides tensors: whether all of them are well, and what one of them knows.

A rank that fails alone would leave the others waiting in their next collective until its timeout.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@contextmanager
def together(kind: type[Exception]) -> Iterator[None]:
    """Where the block fails on a rank, all ranks raise the same error, and none is left waiting.

    An error of the kind is taken to be known to all ranks already, and goes on in its own words.

    Raises:
        kind: the block failed; names the ranks
    """
    failure: Exception | None = None
    words: str | None = None
    try:
        yield
    except kind as error:
        failure, words = error, str(error)
    except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear of it; raised below)
        failure, words = error, f"rank {rank()}: {error}"
    told = list(dict.fromkeys(each for each in of_all(words) if each is not None))
    if told:
        raise kind("; ".join(told)) from failure


def rank() -> int:
    """The number of this process; 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def of_first(value: Value) -> Value:
    """What rank 0 has, on every rank."""
    if not dist.is_initialized():
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


def on_any(value: bool, device: torch.device) -> bool:
    """Whether it is so on any rank: all ranks get the same answer, in one small exchange."""
    return bool(largest([float(value)], device)[0])


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value added up over all ranks, in float64."""
    return _reduced(values, device, dist.ReduceOp.SUM)


def largest(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value on the rank where it is largest."""
    return _reduced(values, device, dist.ReduceOp.MAX)


def _reduced(values: Sequence[float], device: torch.device, op: dist.ReduceOp.RedOpType) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(reduced, op=op)
    return list(reduced.tolist())


def of_all(value: Value) -> list[Value]:
    """What each rank has, in their order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
