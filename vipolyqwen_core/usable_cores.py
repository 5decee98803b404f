"""How many cores this process may use, which in a container may be fewer than the machine has."""

import os


def usable_cores() -> int:
    """Cores that this process may run on; where the system does not tell, those of the machine."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1
