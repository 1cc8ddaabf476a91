"""Pieces of C: numbers that lose nothing, arrays, and the memory that values of a plan share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

WIDTH = 110
# C's name of a NumPy type, and how one number is written.
_TYPES: dict[str, str] = {
    "float32": "float",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "uint8": "uint8_t",
}


def number(value: Any, kind: str) -> str:
    """Return a number as C writes it; floats in hexadecimal, so that every bit is kept."""
    if kind == "float32":
        value = float(value)
        if np.isnan(value):
            raise ValueError("C has no literal for NaN")
        if np.isinf(value):
            return "INFINITY" if value > 0 else "-INFINITY"
        return f"{value.hex()}f"
    if kind == "uint32":
        return f"0x{int(value):x}u"
    if kind == "int32" and int(value) == np.iinfo(np.int32).min:
        return "INT32_MIN"
    return str(int(value))


def wrapped(items: Iterable[str], indent: str) -> str:
    """Return items with commas, in lines of about WIDTH characters."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])


def array(name: str, values: np.ndarray) -> str:
    """Return the definition of a constant array, flat."""
    flat = np.ascontiguousarray(values).reshape(-1)
    kind = str(flat.dtype)
    items = wrapped((number(value, kind) for value in flat), "    ")
    return f"static const {_TYPES[kind]} {name}[{len(flat)}] = {{\n{items}\n}};\n"


class Memory:
    """Static buffers that values share when their lives do not overlap; those of floats, integers and bits are apart.

    Each is an array of one C type, so that no memory is ever read as another type than it was written.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._free: list[str] = []
        self._kinds: dict[str, str] = {}

    def take(self, kind: str, count: int) -> str:
        """Return the name of a buffer for `count` numbers of a C type."""
        free = [name for name in self._free if self._kinds[name] == kind]
        if free:
            # The one that need grow least, and of those the smallest.
            name = min(free, key=lambda one: (max(0, count - self._sizes[one]), self._sizes[one]))
            self._free.remove(name)
        else:
            name = f"{kind.removesuffix('_t')}s{sum(k == kind for k in self._kinds.values())}"
            self._kinds[name] = kind
        self._sizes[name] = max(count, self._sizes.get(name, 0))
        return name

    def give_back(self, name: str) -> None:
        """Let others have a buffer."""
        self._free.append(name)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return 4 * sum(self._sizes.values())

    def definitions(self, prefix: str) -> str:
        """Return the definitions of all buffers."""
        return "".join(f"static {self._kinds[n]} {prefix}_{n}[{size}];\n" for n, size in self._sizes.items())


def indented(lines: Sequence[str], depth: int) -> str:
    """Return lines, each further in by so many levels."""
    return "\n".join(f"{'    ' * depth}{line}" if line else "" for line in lines)
