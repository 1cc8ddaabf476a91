"""The geometry of a convolution step: its sides from the attributes, and the size of its output."""

from collections.abc import Sequence
from dataclasses import dataclass

from bnn_kernels.steps.base import Step, need
from bnn_kernels.steps.fields import StepFields


@dataclass(frozen=True, kw_only=True)
class ConvFields(StepFields):
    """shape: (filters, channels / groups, kh, kw), the weight's. stride, dilation: (y, x).

    padding: (y, x), or (top, left, bottom, right).
    """

    shape: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def geometry_of(this: Step, kernel: Sequence[int]) -> tuple[int, ...]:
    """Return (kh, kw, sy, sx, py, px, dy, dx, ey, ex) of a convolution step; ey, ex: the padding behind the map."""
    stride, padding = this.ints("stride", 2, 1), this.ints("padding", None, 0)
    need(len(padding) in (2, 4), f"attribute 'padding' must have 2 or 4 numbers, got {list(padding)}")
    return (*kernel, *stride, *padding[:2], *this.ints("dilation", 2, 1), *padding[-2:])


def conv_size(shape: tuple[int, ...], geometry: tuple[int, ...]) -> tuple[int, int]:
    """Return (Ho, Wo) of a convolution over (C, H, W); PlanError if the filter does not fit."""
    kh, kw, sy, sx, py, px, dy, dx, ey, ex = geometry
    for extent, padding in zip((*shape[1:], *shape[1:]), (py, px, ey, ex), strict=True):
        need(padding <= 2 * extent + 16, f"padding {padding} of a side of {extent} is mostly outside")
    ho = (shape[1] + py + ey - dy * (kh - 1) - 1) // sy + 1
    wo = (shape[2] + px + ex - dx * (kw - 1) - 1) // sx + 1
    need(ho > 0 and wo > 0, f"a {kh}x{kw} filter does not fit a {shape[1]}x{shape[2]} map")
    return ho, wo
