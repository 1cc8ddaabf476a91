"""Memory of this process as Linux counts it; other systems do not say what the measurements here need.

Not `resource.getrusage`: a new process inherits its parent's peak there.
"""

from pathlib import Path

STATUS = Path("/proc/self/status")


def is_measured() -> bool:
    """Say whether this system tells a process its memory."""
    return STATUS.exists()


def resident_bytes() -> int:
    """Return the bytes that are resident now; OSError where the system does not say."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """Return the most bytes that ever were resident; OSError where the system does not say."""
    return _read("VmHWM")


def _read(key: str) -> int:
    if is_measured():
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} does not say {key}: the memory of a process is measured on Linux alone")
