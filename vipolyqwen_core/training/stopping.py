"""SIGTERM: the step in progress is finished, a checkpoint saved, and the process leaves."""

import signal
from types import FrameType

import torch
import torch.distributed as dist


class StoppedEarly(Exception):
    """The run was asked to stop; a checkpoint is saved, and the same command resumes it."""


class StopSignal:
    """Remembers that SIGTERM came, until the step is done."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """Take SIGTERM from now on. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop: all ranks get the same answer, in one small exchange."""
        if not dist.is_initialized():
            return self._asked
        flag = torch.tensor(float(self._asked), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
