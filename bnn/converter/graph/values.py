"""The typed graph between a recorded network and its packed plan: what each value is made of.

Shapes leave the batch out: (C, H, W), (C, L) or (K,). A value knows its operands, so a graph is its outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from bnn_kernels.steps.binary import BinaryLayerFields
from bnn_kernels.steps.fields import StepFields
from bnn_kernels.steps.float import FloatLayerFields
from bnn_kernels.steps.level_matmul import LevelMatmul
from bnn_kernels.steps.pool import AvgPool, MaxPool
from torch import Tensor

from bnn.converter.errors import ConversionError
from bnn.converter.levels.table import LevelTable
from bnn.planes import Planes, Term
from bnn.quantizers.base import Quantizer, Uniform


@dataclass(frozen=True)
class Padding:
    """x with rows of a number before and behind each axis; around: (before, behind) of each, the last axis first."""

    x: "Value"
    around: tuple[tuple[int, int], ...]
    number: float


@dataclass(eq=False)
class Value:
    """A float tensor that the network computes.

    shape: without the batch. inputs: what it is computed from. source: where the network computes the same numbers, ""
    if nowhere. padded: what else it is, if it has numbers around it. owner: the place whose rule made it.
    """

    shape: tuple[int, ...]
    inputs: tuple["Value", ...] = ()
    source: str = ""
    padded: Padding | None = field(default=None, kw_only=True)
    owner: str = field(default="", kw_only=True)


@dataclass(eq=False)
class Input(Value):
    """An input of the network.

    indices: it holds integers, which only embeddings and caches read. pixels: it holds bytes.
    """

    register: str = "x"
    indices: bool = False
    pixels: bool = False


@dataclass(eq=False)
class Refused(Value):
    """A value that cannot be converted; the error counts if an output depends on it."""

    error: ConversionError = field(kw_only=True)


@dataclass(eq=False)
class OffBatch(Refused):
    """A view whose batch is not the first axis, from which another view may lead back.

    base: where its numbers come from; places: float64, 1 + their places in two images of the base, 0 for a zero.
    """

    base: Value = field(kw_only=True)
    places: Tensor = field(kw_only=True)


@dataclass(eq=False)
class Levels(Value):
    """Integer levels of a quantized value; its only readers are binary layers, `LevelProduct` and `Unpacked`.

    levels: maps floats (T, C) to integer levels, the quantizer itself; see `level_table` for those of several terms.
    uniform: it is the same for all channels. planes: of some input, for terms, scales and offset. table: the levels in
    order. spacing: how they follow from the input if they are evenly spaced, as the quantizer says.
    quantizer: whose levels they are.
    """

    levels: Callable[[Tensor], Tensor] = field(kw_only=True)
    uniform: bool = field(kw_only=True)
    planes: Planes = field(kw_only=True)
    table: LevelTable = field(kw_only=True)
    spacing: Uniform | None = field(kw_only=True, default=None)
    quantizer: Quantizer = field(kw_only=True)


@dataclass(eq=False)
class Unpacked(Value):
    """The values of levels, as floats."""

    @property
    def planes(self) -> Planes:
        """Planes of the levels."""
        (levels,) = self.inputs
        assert isinstance(levels, Levels)
        return levels.planes


@dataclass(eq=False)
class FloatLayer(Value):
    """Convolution or matrix product with float inputs. terms: the weight's, if it is stored as bits."""

    fields: FloatLayerFields = field(kw_only=True)
    terms: tuple[Term, ...] = field(kw_only=True, default=())


@dataclass(eq=False)
class OwnStep(Value):
    """What a step of its own computes of floats: normalization, windows of several sizes, resizing."""

    fields: StepFields = field(kw_only=True)


@dataclass(eq=False)
class BinaryLayer(Value):
    """Convolution or matrix product of levels: sum over terms of scale * integer dot, times K, plus bias.

    inputs: levels, and the floats of which K is the scale if fields.input_scale. fields: of a step with an output of
    floats, without scales and epilogue. terms: the weight's. scales: for each of them in turn one (O,) for each part of
    the input. constant: (O,), what the input's offset adds to the one scaled sum everywhere, if there is one and it
    does. exact: the network itself computes scaled integers, not floats within rounding of them. path: the module's.
    """

    fields: BinaryLayerFields = field(kw_only=True)
    terms: tuple[Term, ...] = field(kw_only=True)
    scales: tuple[Tensor, ...] = field(kw_only=True)
    constant: Tensor | None = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)
    largest: int = field(kw_only=True)
    exact: bool = field(kw_only=True)
    path: str = field(kw_only=True)

    @property
    def has_integers(self) -> bool:
        """Whether the output is a monotone function of one integer a channel."""
        return (len(self.scales) == 1 or self.constant is not None) and not self.fields.input_scale and self.exact

    def output(self, sums: Tensor) -> Tensor:
        """Return the output for integer sums (T, O), as the layer computes it."""
        y = sums.to(self.scales[0].dtype) * self.scales[0]
        y = y if self.constant is None else y + self.constant
        return y if self.bias is None else y + self.bias


@dataclass(eq=False)
class LevelProduct(Value):
    """Matrix products of two tensors of levels: (K, H, R) and (K, H, C), of one scale each, give (C, H, R)."""

    fields: LevelMatmul.Fields = field(kw_only=True)


@dataclass(frozen=True)
class Affine:
    """x * scale + shift, float64 (C,); None is 1 or 0. is_norm: rounded once, as batch norm is, not twice."""

    scale: np.ndarray | None
    shift: np.ndarray | None
    is_norm: bool = False


@dataclass(frozen=True)
class Bend:
    """x - pre, times slope where negative, + post: PReLU and its kin; float64 (C,), None is 0."""

    slope: np.ndarray
    pre: np.ndarray | None = None
    post: np.ndarray | None = None


@dataclass(frozen=True)
class Clamp:
    """min(max(x, low), high)."""

    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A function known to the kernels by name."""

    kind: str


@dataclass(eq=False)
class Channelwise(Value):
    """A function of one number for each channel.

    function: (T, C) -> (T, C), what the network itself computes; form: how the kernels compute it. uniform: it is the
    same for all channels. monotone: it never turns round, so levels behind it are thresholds before it.
    """

    function: Callable[[Tensor], Tensor] = field(kw_only=True)
    form: Affine | Bend | Clamp | Curve = field(kw_only=True)
    uniform: bool = field(kw_only=True)
    monotone: bool = field(kw_only=True)


@dataclass(eq=False)
class Pool(Value):
    """Maximum or mean over windows."""

    fields: MaxPool.Fields | AvgPool.Fields = field(kw_only=True)


@dataclass(eq=False)
class Add(Value):
    """Sum of two values of one shape."""


@dataclass(eq=False)
class Combine(Value):
    """Sum ("add"), product ("multiply"), quotient ("divide"), "maximum" or "minimum", sides of 1 stretched."""

    kind: str = field(kw_only=True)


@dataclass(eq=False)
class Concat(Value):
    """Channels one after the other."""


@dataclass(eq=False)
class Moved(Value):
    """The same numbers elsewhere: index int64 of the value's shape, 1 + the place in the operand, 0 for a zero."""

    index: np.ndarray = field(kw_only=True)

    @property
    def is_flatten(self) -> bool:
        """Whether this is the operand as it is, as a vector."""
        count = math.prod(self.inputs[0].shape)  # of which the first alone, as of a sequence, are a part
        return self.shape == (count,) and bool((self.index == np.arange(1, count + 1)).all())


def refused(values: list[Value]) -> Refused | None:
    """Return the first value that cannot be converted of those that these depend on, or None."""
    return next((value for value in live_values(values) if isinstance(value, Refused)), None)


def live_values(outputs: list[Value]) -> list[Value]:
    """Return all values that the outputs depend on, operands first."""
    order: dict[Value, None] = {}
    stack = [(value, False) for value in reversed(outputs)]
    while stack:
        value, ready = stack.pop()
        if value in order:
            continue
        if ready:
            order[value] = None
        else:
            stack.append((value, True))
            stack.extend((operand, False) for operand in reversed(value.inputs))
    return list(order)
