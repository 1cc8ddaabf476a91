"""Where a number comes from: code, versions, hardware, time. Every result file carries it."""

import datetime
import functools
import hashlib
import platform
import subprocess
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


@functools.cache
def code_state() -> dict[str, str | None]:
    """Return {"commit", "sources"}: the commit of the checkout that bnn is run from, and a hash of bnn's source files.

    The commit is None outside a checkout, of an installed package for instance. The hash, 12 hexadecimal digits, tells
    edited files apart too. It is that of the first call in this process.
    """
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return {"commit": _commit(package), "sources": digest.hexdigest()[:12]}


def _commit(package: Path) -> str | None:
    """Return the commit of the checkout that has the package among its files; None if there is none, or no git."""
    git = ["git", "-C", str(package)]
    options: Any = {"capture_output": True, "text": True, "timeout": 20}
    try:
        known = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], **options)
        head = subprocess.run([*git, "rev-parse", "HEAD"], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() if known.returncode == head.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """Return {"code", "versions", "hardware", "finished"} of this process; nothing that names a user or a path."""
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": usable_cores(), "torch_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"code": dict(code_state()), "versions": versions, "hardware": hardware, "finished": finished}
