"""What a device can do at most: its rate on bfloat16 matrix products, and on copies of its memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

PRODUCTS = 10
"""Products, or copies, of each timing: so many that starting them does not count."""
SECONDS = 1.5
"""For so long: an idle GPU takes a while to reach its clock, and then one to reach its limit of power."""


@dataclass(frozen=True)
class Rates:
    """Measured ceilings."""

    matmul_flops: float
    """Operations a second of a square bfloat16 product of random matrices: the fastest timing."""
    sustained_matmul_flops: float
    """The same in the last third of the time, when power may be what limits it."""
    copy_bytes: float
    """Bytes a second of a copy within the device's memory, read and written counted: the median."""


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rates(device: torch.device, side: int) -> Rates:
    """The rates of products of matrices with `side` rows and columns, and of copies of 4 such in float32."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(side * side, 4, device=device)
    target = torch.empty_like(source)
    matmul = _seconds(lambda: torch.mm(left, right, out=product), device)
    copy = _seconds(lambda: target.copy_(source), device)
    operations = 2.0 * side**3
    return Rates(
        operations / min(matmul),
        operations / median(matmul[2 * len(matmul) // 3 :]),
        2.0 * source.numel() * source.element_size() / median(copy),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds a piece, one timing after the other."""
    timings: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or not timings:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            work()
        synchronize(device)
        timings.append((time.perf_counter() - started) / PRODUCTS)
    return timings
