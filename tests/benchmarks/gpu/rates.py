"""What a device can do at most: its rate on bfloat16 matrix products, and on copies of its memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

GROUPS = 10
"""Timings of which the median counts."""
PRODUCTS = 10
"""Products, or copies, of each timing: so many that starting them does not count."""
WARM_SECONDS = 1.0
"""Work before the first timing: an idle GPU takes a while to reach its clock, and its limit of power."""


@dataclass(frozen=True)
class Rates:
    """Measured ceilings."""

    matmul_flops: float
    """Operations a second of a square bfloat16 product of random matrices."""
    copy_bytes: float
    """Bytes a second of a copy within the device's memory, read and written counted."""


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rates(device: torch.device, side: int) -> Rates:
    """What the device keeps up, at the clock that it works at."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(side * side, 4, device=device)
    target = torch.empty_like(source)
    matmul = _median_seconds(lambda: torch.mm(left, right, out=product), device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return Rates(2.0 * side**3 / matmul, 2.0 * source.numel() * source.element_size() / copy)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    def group() -> float:
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            work()
        synchronize(device)
        return (time.perf_counter() - started) / PRODUCTS

    until = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < until:
        group()
    return median(group() for _ in range(GROUPS))
