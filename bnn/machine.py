"""What this process may use of the machine, on every system that Python runs on."""

import os


def usable_cores() -> int:
    """Return how many cores this process may run on: its affinity on Linux, all of them where there is none."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
