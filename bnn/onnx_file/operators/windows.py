"""The windows of convolutions and pooling: kernel, stride, dilation and what is padded."""

from collections.abc import Sequence
from typing import NamedTuple

from bnn.onnx_file.builder import Builder


class Windows(NamedTuple):
    """pads: before each axis, then after each, as ONNX has them."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def axes(self) -> int:
        """Of maps 2."""
        return len(self.kernel)

    @property
    def padding(self) -> tuple[int, ...]:
        """What is padded before each axis, which is what is padded after it too unless they are uneven."""
        return self.pads[: self.axes]

    @property
    def uneven(self) -> bool:
        """Whether another number of places is padded after some axis than before it."""
        return self.padding != self.pads[self.axes :]

    @property
    def backwards(self) -> tuple[int, ...]:
        """The pads as PyTorch has them: before and after each axis, last axis first."""
        return backwards(self.pads)

    def without_pads(self) -> "Windows":
        """Return the same without pads."""
        return self._replace(pads=(0,) * len(self.pads))


def backwards(pads: Sequence[int]) -> tuple[int, ...]:
    """Return ONNX's pads as PyTorch has them: before and after each axis, last axis first."""
    half = len(pads) // 2
    return tuple(p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half]))


def windows(build: Builder, sides: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Return the windows of an operator over a map of these sides."""
    given, axes = build.node.attributes, len(kernel)
    build.need(len(sides) == axes and 1 <= axes <= 3, f"its windows have {axes} axes, its input {len(sides)}")
    stride, dilation = (tuple(given.get(name, (1,) * axes)) for name in ("strides", "dilations"))
    auto = given.get("auto_pad", "NOTSET")
    pads = tuple(given.get("pads", (0,) * 2 * axes))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-side // s) - 1) * s + d * (k - 1) + 1 - side)
            for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
        ]
        less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        pads = (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
    elif auto == "VALID":
        pads = (0,) * 2 * axes
    else:
        build.need(auto == "NOTSET", f"its auto_pad is {auto!r}")
    build.need(len(pads) == 2 * axes and min(pads) >= 0, f"its pads are {list(pads)}")
    return Windows(tuple(kernel), stride, dilation, pads)
