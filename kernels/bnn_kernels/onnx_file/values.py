"""Registers of a plan in ONNX: floats and sums by their names, levels with what they count."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.uniform import UniformLevels
from bnn_kernels.onnx_file.graph import QONNX, Graph, by_channel, step_of
from bnn_kernels.steps.base import Spec

ONE = np.float32(1)
# Beyond what a network computes.
FARTHEST = 3e38


@dataclass
class Floats:
    """float32, or the integer sums of a layer as floats.

    rounding: the levels to which sums are to be rounded that were scaled for it. falling: for which channels by a
    negative number, bool (C,).
    """

    name: str
    spec: Spec
    rounding: UniformLevels | None = None
    falling: np.ndarray | None = None


@dataclass
class Levels:
    """Levels of evenly spaced numbers, or of a table.

    Of the first kind `name` is of floats unit * (level - zero), where level is what the planes hold. Of the second
    kind `index` is of floats that count up to the level's place in `codes`.
    """

    spec: Spec
    name: str = ""
    unit: np.float32 = ONE
    zero: int = 0
    index: str = ""
    codes: np.ndarray | None = None
    _made: dict[tuple[tuple[int, ...], bool, int], str] = field(default_factory=dict)

    def stored(self, g: Graph) -> str:
        """Return what the planes hold, as floats without error."""
        if self.codes is not None:
            return self.term(g, self.spec.multipliers, self.spec.signed, 0)
        if (self.unit, self.zero) == (1, 0):
            return self.name
        key = ((), False, -1)
        if key not in self._made:
            x = g.integers_of(self.name)
            if x is None:
                x = self.name
                if self.unit != 1:
                    x = g.add("Round", [g.add("Div", [x, g.floats(self.unit)])])
                x = g.add("Add", [x, g.floats(self.zero)]) if self.zero else x
            self._made[key] = x
        return self._made[key]

    def term(self, g: Graph, multipliers: tuple[int, ...], signed: bool, start: int) -> str:
        """Return the levels of some of the planes, from one on, as floats."""
        key = (multipliers, signed, start)
        if key not in self._made:
            index, codes = self.places(g)
            table = level_of_code(multipliers, signed)[(codes >> start) & ((1 << len(multipliers)) - 1)]
            if np.array_equal(table, table[0] + np.arange(len(table))):
                made = g.add("Add", [index, g.floats(table[0])]) if table[0] else index
            elif len(table) == 2:
                made = g.add("Add", [g.add("Mul", [index, g.floats(table[1] - table[0])]), g.floats(table[0])])
            else:
                made = lookup(g, index, table)
            self._made[key] = g.integers(made, int(table.min()), int(table.max()))
        return self._made[key]

    def places(self, g: Graph) -> tuple[str, np.ndarray]:
        """Return (floats that are places in a table, the code of each place)."""
        if self.codes is not None:
            return self.index, self.codes.astype(np.int64)
        levels = level_of_code(self.spec.multipliers, self.spec.signed)
        low = int(levels.min())
        codes = np.argsort(levels, kind="stable")
        every = np.zeros(int(levels.max()) - low + 1, np.int64)
        every[levels[codes] - low] = codes
        x = self.stored(g)
        return (g.add("Sub", [x, g.floats(low)]) if low else x), every

    def parts(self, g: Graph, terms: Sequence[tuple[tuple[int, ...], bool]] | None) -> tuple[list[str], np.float32]:
        """Return the terms of the levels as floats, each times the same unit, and that unit."""
        if terms is not None:
            starts = np.cumsum([0, *(len(multipliers) for multipliers, _ in terms)])
            return [self.term(g, *t, int(s)) for t, s in zip(terms, starts, strict=False)], np.float32(1)
        if self.codes is None and self.zero == 0:
            return [self.name], self.unit
        return [self.stored(g)], np.float32(1)


def lookup(g: Graph, index: str, table: np.ndarray) -> str:
    """Return the numbers at places of a table (L,)."""
    return g.add("Gather", [g.floats(table, "table"), g.add("Cast", [index], to=7)])


def rounded(g: Graph, x: str, levels: UniformLevels, spec: Spec) -> Levels:
    """Return evenly spaced levels of floats."""
    return Levels(spec, g.quantize(x, levels), step_of(levels), levels.zero)


def signs(g: Graph, x: str, bounds: np.ndarray, flip: np.ndarray, shape: tuple[int, ...]) -> Levels:
    """Return the signs +1 where (x >= bounds) xor flip and -1 elsewhere; bounds and flip are (C,)."""
    axes, spec = len(shape), Spec("bits", shape)
    if g.style == "qonnx":
        # A difference of two floats is 0 only if they are equal; with an infinite one it may be none.
        finite = by_channel(np.clip(bounds, -FARTHEST, FARTHEST), axes)
        x = g.add("Sub", [x, g.floats(finite, "bounds")]) if bounds.any() else x
        made = g.add("BipolarQuant", [x, g.floats(1, "scale")], QONNX)
        if flip.any():
            made = g.add("Mul", [made, g.floats(by_channel(np.where(flip, -1, 1), axes), "direction")])
        return Levels(spec, made)
    plus = g.add("GreaterOrEqual", [x, g.floats(by_channel(bounds, axes), "bounds")])
    if flip.any():
        plus = g.add("Xor", [plus, g.constant(by_channel(flip.astype(np.bool_), axes), "flip")])
    return Levels(spec, g.signs(plus))


def compared(g: Graph, x: str, t: np.ndarray, flip: np.ndarray, codes: np.ndarray, spec: Spec) -> Levels:
    """Return the levels of which index = #{i : (x >= t[i]) xor flip}, t (L - 1, C), flip (C,)."""
    if spec.multipliers == (1,) and spec.signed and tuple(codes) == (1, 0):
        return signs(g, x, np.broadcast_to(t[0], spec.shape[:1]), np.broadcast_to(flip, spec.shape[:1]), spec.shape)
    # One more axis, of the thresholds, behind the others.
    bounds = np.asarray(t).T.reshape(t.shape[1], *[1] * (len(spec.shape) - 1), len(t))
    x = g.add("Unsqueeze", [x, g.constant(np.array([-1], np.int64), "axes")])
    reached = g.add("GreaterOrEqual", [x, g.floats(bounds, "thresholds")])
    if flip.any():
        wide = by_channel(flip.astype(np.bool_), len(spec.shape))[..., None]
        reached = g.add("Xor", [reached, g.constant(wide, "flip")])
    axes = g.constant(np.array([-1], np.int64), "axes")
    index = g.add("ReduceSum", [g.add("Cast", [reached], to=1), axes], keepdims=0)
    return Levels(spec, index=index, codes=codes)
