"""What a device can do at most: its rate on bfloat16 matrix products, and on copies of its memory."""

import time
from dataclasses import dataclass

import torch

REPETITIONS = 10


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
    """The median of single timings, after two that warm up."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(side * side, 4, device=device)
    target = torch.empty_like(source)
    matmul = _median_seconds(lambda: torch.mm(left, right, out=product), device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return Rates(2.0 * side**3 / matmul, 2.0 * source.numel() * source.element_size() / copy)


def _median_seconds(work, device: torch.device) -> float:
    seconds = []
    for repetition in range(2 + REPETITIONS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if repetition >= 2:
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[REPETITIONS // 2]
