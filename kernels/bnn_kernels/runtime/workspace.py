"""Memory that a packed model uses again from call to call.

Whatever computes asks `empty` for its output and its scratch. While a packed model runs, large arrays come from the
workspace of that call; when no register needs one any more, the next step may have it. Two calls at a time have two
workspaces. A recorded call (`recording.py`) keeps the workspace's memory for itself and allocates nothing but what it
returns.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bnn_kernels.compile.jit import jit
from bnn_kernels.runtime import recording
from bnn_kernels.runtime.cache_lines import empty_at_line
from bnn_kernels.runtime.threads import run_rows

# Smaller arrays cost less to allocate than to look up.
SMALLEST = 1 << 15

_local = threading.local()


@jit
def _zero(array, first, last):
    """Zero array[first:last], uint8."""
    part = array[first:last]
    for i in range(len(part)):  # from 0 on: no index can be negative, and this becomes memset
        part[i] = 0


def empty(shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
    """Return an uninitialised contiguous array, of the running model's workspace if there is one.

    It begins at a cache line, unless it is small and no model's.
    """
    workspace: Workspace | None = getattr(_local, "workspace", None)
    kind = np.dtype(dtype)
    sides = (shape,) if isinstance(shape, int) else shape
    nbytes = math.prod(sides) * kind.itemsize
    if nbytes < SMALLEST:
        return np.empty(shape, dtype) if workspace is None else empty_at_line(sides, kind)
    return empty_at_line(sides, kind) if workspace is None else workspace.take(nbytes).view(kind).reshape(sides)


def zeros(shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
    """Return zeros, of the running model's workspace if there is one."""
    array = empty(shape, dtype)
    run_rows(_zero, array.nbytes, array.nbytes // 64, array.reshape(-1).view(np.uint8))
    return array


def contiguous(x: np.ndarray) -> np.ndarray:
    """Return x, or a contiguous copy of it."""
    if x.flags.c_contiguous:
        return x
    copy = empty(x.shape, x.dtype)
    recording.do(np.copyto, copy, x)
    return copy


def root(array: np.ndarray) -> Any:
    """Return the array whose memory a view looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Workspace:
    """The buffers of one call at a time.

    A buffer that is given back serves the next request of its size, in this call or the next one; buffers that a whole
    call found no use for are dropped.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._before: dict[int, list[np.ndarray]] = {}
        # Buffers in use by the ids of their roots, and how many registers need each; scratch of the running step has 0.
        self._users: dict[int, int] = {}
        self._taken: list[np.ndarray] = []
        self._buffers: dict[int, np.ndarray] = {}
        # What the caller keeps from one call to the next, and of how many images the last call was.
        self.recorded: dict[int, Any] = {}
        self.last: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers that wait for the next call."""
        return sum(size * len(buffers) for size, buffers in self._before.items())

    def take(self, nbytes: int) -> np.ndarray:
        """Return a uint8 view (nbytes,) of a buffer."""
        # Sizes in steps of an eighth of their power of two, so that nearly equal ones share.
        step = 1 << max(0, nbytes.bit_length() - 4)
        size = -(-nbytes // step) * step
        for pool in (self._free, self._before):
            waiting = pool.get(size)
            if waiting:
                buffer = waiting.pop()
                break
        else:
            buffer = empty_at_line((size,), np.dtype(np.uint8))
        self._buffers[id(root(buffer))] = buffer
        self._taken.append(buffer)
        return buffer[:nbytes]

    def keep(self, arrays: Iterable[np.ndarray]) -> None:
        """Note what a step has made: its other buffers were scratch and are free again."""
        for array in arrays:
            key = id(root(array))
            if key in self._buffers:
                self._users[key] = self._users.get(key, 0) + 1
        for buffer in self._taken:
            if id(root(buffer)) not in self._users:
                self._give(id(root(buffer)))
        self._taken.clear()

    def drop(self, array: np.ndarray) -> None:
        """Note that a register is not needed any more."""
        key = id(root(array))
        if key in self._users:
            self._users[key] -= 1
            if self._users[key] == 0:
                del self._users[key]
                self._give(key)

    def _give(self, key: int) -> None:
        buffer = self._buffers.pop(key)
        self._free.setdefault(len(buffer), []).append(buffer)

    def clear(self) -> None:
        """Give back what waits for the next call."""
        self._before, self._free = {}, {}

    def end(self) -> None:
        """Finish a call: what is still in use belongs to the caller now, what was used waits for the next call."""
        for key in [key for key in self._buffers if key not in self._users]:
            self._give(key)
        self._before, self._free = self._free, {}
        self._users.clear()
        self._buffers.clear()
        self._taken.clear()


@contextmanager
def in_use(workspace: Workspace) -> Iterator[None]:
    """Let `empty` take from a workspace, for a call of this thread."""
    outer = getattr(_local, "workspace", None)
    _local.workspace = workspace
    try:
        yield
    finally:
        _local.workspace = outer
        workspace.end()


class Workspaces:
    """As many workspaces as there are calls at a time."""

    def __init__(self) -> None:
        self._waiting: list[Workspace] = []

    def take(self) -> Workspace:
        """Return a workspace that nobody else has until it is given back."""
        try:
            return self._waiting.pop()
        except IndexError:
            return Workspace()

    def give_back(self, workspace: Workspace) -> None:
        """Let the next call have a workspace."""
        self._waiting.append(workspace)
