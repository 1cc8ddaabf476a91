"""One process at a time works in a run's folder; the others wait for it."""

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from experiments.results import write_json

LOCK, SOFT, OWNER = ".lock", ".lock.soft", ".lock.owner"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def owner(folder: Path) -> str:
    """Return who holds a folder, in words."""
    try:
        content = json.loads((folder / OWNER).read_text())
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquired(folder: Path, wait: bool) -> BaseFileLock:
    """Return the lock of a folder, held. The system frees a killed process's lock.

    Where the file system knows no such locks, a file with the process's id stands for one.
    """
    lock: BaseFileLock = FileLock(folder / LOCK)
    try:
        return _acquire(lock, folder, wait)
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
    return _acquire(SoftFileLock(folder / SOFT), folder, wait)


def _acquire(lock: BaseFileLock, folder: Path, wait: bool) -> BaseFileLock:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise HeldError(f"{folder}: {owner(folder)} works on this run") from error
        print(f"{folder}: {owner(folder)} works on this run; waiting for it", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    return lock


class HeldError(RuntimeError):
    """Another process holds the folder."""


def is_held(folder: Path) -> bool:
    """Return whether a process works in a folder now; one that was killed holds nothing."""
    if not any((folder / name).exists() for name in (LOCK, SOFT)):
        return False
    try:
        _acquired(folder, wait=False).release()
    except HeldError:
        return True
    except OSError:  # a folder of others, which nobody here works in
        return False
    return False


@contextlib.contextmanager
def run_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a run's folder, which is made. OSError if it cannot be made.

    wait: say once who holds it now, and wait; without, HeldError says who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder, wait)
    try:
        with contextlib.suppress(OSError):  # only for the words; a full disk is told by what matters
            write_json(folder / OWNER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()
