"""Where a number comes from: versions, hardware, time. Every result file carries it."""

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bnn.machine import usable_cores

_PACKAGES = ("bitplanes", "torch", "lightning", "numpy", "numba", "hydra-core")


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Return {"versions", "hardware", "finished"} of this process; nothing that names a user or a path."""
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": usable_cores(), "torch_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions, "hardware": hardware, "finished": finished}
