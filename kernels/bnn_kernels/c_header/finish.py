"""What follows a layer's sums, in C: the operations of `ops.epilogue` in their order, and its signs and levels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bnn_kernels.bits.thresholds import Thresholds
from bnn_kernels.c_header.source import number
from bnn_kernels.steps.finish import Finish

# Writes an array and returns its name.
Keep = Callable[[str, np.ndarray], str]


def set_bits(words: str, planes: int, positions: int, row: int, place: str, code: str) -> list[str]:
    """Return lines that set the bits of a code at channel c of a place; words: a buffer that was zeros."""
    found = []
    for p in range(planes):
        at = f"{words}[({p * positions} + {place}) * {row} + (c >> 5)]"
        found.append(f"{at} |= (uint32_t)(({code}) >> {p} & 1) << (c & 31);")
    return found


def float_lines(
    fields: Any, tensors: dict[str, np.ndarray], scale: np.ndarray | None, shift: np.ndarray | None, keep: Keep, at: str
) -> list[str]:
    """Return lines that finish the float v of channel c; at: the residual of this number, if there is one."""

    def vector(name: str) -> str:
        return f"{keep(name, tensors[name])}[c]"

    lines = []
    if scale is not None or shift is not None:
        if scale is not None:
            lines.append(f"v = v * {keep('scale', scale)}[c];")
        lines.append(f"v = v + {'0.0f' if shift is None else keep('shift', shift) + '[c]'};")
    if fields.norm_scale is not None or fields.norm_shift is not None:
        gain = "1.0f" if fields.norm_scale is None else vector("norm_scale")
        offset = "0.0f" if fields.norm_shift is None else vector("norm_shift")
        lines.append(f"v = fmaf(v, {gain}, {offset});")
    if fields.residual == "before":
        lines.append(f"v = v + {at};")
    if any(part is not None for part in (fields.pre, fields.slope, fields.post)):
        lines.append(f"v = v - {'0.0f' if fields.pre is None else vector('pre')};")
        if fields.slope is not None:
            lines += [f"if (v < 0.0f) v = v * {vector('slope')};"]
        lines.append(f"v = v + {'0.0f' if fields.post is None else vector('post')};")
    if fields.low > -np.inf:
        low = number(np.float32(fields.low), "float32")
        lines.append(f"if (v < {low}) v = {low};")
    if fields.high < np.inf:
        high = number(np.float32(fields.high), "float32")
        lines.append(f"if (v > {high}) v = {high};")
    if fields.residual == "after":
        lines.append(f"v = v + {at};")
    return lines


def level_lines(levels: Any, v: str = "v") -> list[str]:
    """Return lines that make the code of evenly spaced levels of a float v."""
    factor, low, high = (number(np.float32(value), "float32") for value in (levels.factor, levels.low, levels.high))
    return [
        f"float u = {v} {'/' if levels.divides else '*'} {factor};",
        f"if (u < {low}) u = {low};",
        f"if (u > {high}) u = {high};",
        f"const int32_t code = ((int32_t)rintf(u) + {levels.zero}) & {(1 << levels.bits) - 1};",
    ]


def finish_lines(
    finish: Finish, floats: list[str], out: str, bits: Callable[[str], list[str]], keep: Keep
) -> list[str]:
    """Return lines that finish v: floats, then what is written of it.

    out: where the float goes, if it is kept. bits: the lines that write a code.
    """
    lines = list(floats)
    if finish.keep:
        lines.append(f"{out} = v;")
    epilogue = finish.epilogue
    own = "v"
    if epilogue.level_norm is not None:
        gain, offset = (keep(name, epilogue.level_norm[i]) for i, name in enumerate(("level_scale", "level_shift")))
        own = f"fmaf(v, {gain}[c], {offset}[c])"
    if epilogue.bounds is not None:
        bounds, flip = keep("bounds", epilogue.bounds), keep("flip", epilogue.flip.astype(np.uint8))
        lines += bits(f"(uint32_t)(v < {bounds}[c]) ^ {flip}[c]")
    elif finish.levels is not None:
        lines += ["{", *(f"    {line}" for line in [*level_lines(finish.levels, own), *bits("code")]), "}"]
    return lines


def threshold_lines(thresholds: Thresholds, bits: Callable[[str], list[str]], keep: Keep) -> list[str]:
    """Return lines that turn the integer `sum` of channel c into the code of its level."""
    flip = keep("flip", thresholds.flip.astype(np.uint8))
    t = keep("thresholds", thresholds.t)
    levels, channels = thresholds.t.shape
    codes = keep("codes", thresholds.codes)
    return [
        "int level = 0;",
        f"for (int i = 0; i < {levels}; i++) level += (sum >= {t}[i * {channels} + c]) ^ {flip}[c];",
        *bits(f"(uint32_t){codes}[level]"),
    ]
