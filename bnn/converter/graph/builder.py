"""What conversion rules build values with."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypedDict

import numpy as np
import torch
from bnn_kernels.steps.base import STEPS
from bnn_kernels.steps.fields import StepFields
from bnn_kernels.steps.float import FloatConv, FloatLinear
from bnn_kernels.steps.normalize import ByPlace
from bnn_kernels.steps.pool import AvgPool, MaxPool
from torch import Tensor, nn

from bnn.converter.errors import ConversionError
from bnn.converter.graph.input_levels import levels_of
from bnn.converter.graph.permutations import carried, is_permuted, move_alike, origin, second_image
from bnn.converter.graph.values import (
    Add,
    Affine,
    Bend,
    Channelwise,
    Clamp,
    Combine,
    Concat,
    Curve,
    FloatLayer,
    Moved,
    OffBatch,
    OwnStep,
    Pool,
    Unpacked,
    Value,
)
from bnn.converter.registry import rule_of_module
from bnn.quantizers.base import Quantizer

Function = Callable[[Tensor], Tensor]


def two(value: Any) -> list[int]:
    """Return [y, x] of a number or a pair; of one number in a sequence, as 1-d layers have it, [0 or 1 row, x]."""
    return [int(value), int(value)] if isinstance(value, int) else [int(v) for v in value]


def to_numpy(x: Tensor) -> np.ndarray:
    """Return a contiguous float32 copy."""
    return np.ascontiguousarray(x.detach().cpu().to(torch.float32).numpy())


def _by_channel(x: Value, constant: Tensor | None) -> bool:
    """Whether an aligned constant is one number, or one for each channel of x; None is."""
    sides = (1, x.shape[0], *[1] * (len(x.shape) - 1))
    return constant is None or constant.numel() == 1 or tuple(constant.shape) == sides


def _numbers(vector: np.ndarray | None, uniform: bool) -> Tensor | None:
    """Return numbers of channels as a tensor to compute with: a single one, for maps of any width, if all are equal."""
    return None if vector is None else torch.from_numpy(vector[:1] if uniform else vector)


class ConvSides(TypedDict):
    """The fields of a convolution step that do not depend on what it multiplies."""

    shape: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _of_images(method: Callable[..., Value]) -> Callable[..., Value]:
    """Let a method take a value of one number an image, (N,), as one of a channel."""

    @functools.wraps(method)
    def with_channel(self: "Builder", x: Value, *args: Any, **kwargs: Any) -> Value:
        if x.shape:
            return method(self, x, *args, **kwargs)
        made: Value = self.move(method(self, self.move(x, lambda p: p[:, None]), *args, **kwargs), lambda p: p[:, 0])
        return made

    return with_channel


def _bias(bias: Tensor | None) -> np.ndarray | None:
    return None if bias is None else to_numpy(bias)


class Builder:
    """Makes the values that a rule returns. place: the dotted path that the rule is called for, for messages.

    by_image: whether PyTorch has those of one image together and in the same order, if it counts tokens as images.
    """

    def __init__(self, place: str = "", part: Callable[[nn.Module, Sequence[Value], str], Any] | None = None):
        self.place = place
        self.by_image = True
        self._part = part  # makes values of a module without a rule

    def fail(self, reason: str) -> NoReturn:
        """Raise ConversionError with the dotted path of what is being converted."""
        raise ConversionError(f"{self.place}: {reason}")

    def lower(self, module: nn.Module, *values: Value) -> Any:
        """Return what another module, in evaluation mode, makes of the values: a rule may be told by known modules."""
        rule = rule_of_module(module)
        if rule is not None:
            return rule(self, module, *values)
        if isinstance(module, Quantizer):
            return self.quantize(values[0], module)
        if self._part is None:
            self.fail(f"{type(module).__name__} has no conversion rule")
        return self._part(module, values, self.place)

    def quantize(self, x: Value, quantizer: Quantizer, source: str = "") -> Value:
        """Return what a quantizer makes of x; a binary layer behind it reads its bits.

        source: where the parity report finds the levels; by default in the values of the module or function that the
        rule is for, if it returns them as they are.
        """
        if not quantizer.packable:
            return x
        return Unpacked(x.shape, (levels_of(quantizer, x, self.place, source),))

    def _of_network(self, x: Value, constant: Any) -> Any:
        """Return a constant `aligned` with x, of which (C,) numbers are those of channels."""
        if constant is None:
            return None
        tensor = torch.as_tensor(constant)
        is_vector = tensor.shape == x.shape[:1]
        return self.aligned(x, tensor.reshape(-1, *[1] * (len(x.shape) - 1)) if is_vector else tensor)

    # -- by channel -------------------------------------------------------------------------------------------------

    def channel_vector(self, x: Value, constant: Any) -> np.ndarray:
        """Return float64 (C,) of a number, or of a tensor that varies over the channels of x alone."""
        tensor = torch.as_tensor(constant, dtype=torch.float64).detach().cpu()
        channels = x.shape[0]
        if tensor.numel() == 1:
            return np.full(channels, tensor.item())
        # One number a channel, as (C,) given to the builder or aligned with (N, C, H, W) in the network.
        if tensor.shape == (channels,):
            return tensor.numpy().copy()
        full = tensor.reshape([1] * (len(x.shape) + 1 - tensor.ndim) + list(tensor.shape)) if tensor.ndim else tensor
        if full.shape != (1, channels, *[1] * (len(x.shape) - 1)):
            self.fail(
                f"a constant of shape {tuple(tensor.shape)} does not vary by channel alone over {('N', *x.shape)}; "
                "only one number a channel can be converted"
            )
        return full.reshape(channels).numpy().copy()

    def aligned(self, x: Value, constant: Any) -> Tensor:
        """Return a constant of the network with as many axes as x with its batch, as sums and products align them.

        An axis along which it is the same, as after `bias.expand_as(x)`, is 1: one number a channel is kept as such.
        """
        tensor = torch.as_tensor(constant, dtype=torch.float64).detach().cpu()
        sides = (1,) * (len(x.shape) + 1 - tensor.ndim) + tuple(tensor.shape)
        once = tensor.reshape(sides)
        for axis, length in enumerate(sides):
            if length > 1 and bool((once == (first := once.narrow(axis, 0, 1))).all()):
                once = first
        # What was made for the batch must be the same for all images.
        fits = len(sides) == len(x.shape) + 1 and once.shape[0] == 1
        if not fits or any(a not in (1, b) for a, b in zip(sides[1:], x.shape, strict=True)):
            self.fail(f"a constant of shape {tuple(tensor.shape)} does not fit {('N', *x.shape)}")
        return once

    def by_place(self, x: Value, kind: Literal["add", "multiply"], constant: Tensor) -> Value:
        """Return x + constant ("add") or x * constant ("multiply"); constant: `aligned`."""
        if is_permuted(x):
            inside = carried(x, constant)
            assert inside is not None
            return move_alike(x, self.by_place(x.inputs[0], kind, inside))
        value = constant[0]
        if value.ndim == 4:  # the slices of a volume lie below one another
            value = value.expand(-1, *x.shape[1:3], -1).flatten(1, 2)
        if value.ndim == 2:  # a sequence is a map of one row
            value = value[:, None]
        value = value.permute(1, 2, 0) if value.ndim == 3 else value
        return self.step(x, x.shape, ByPlace.Fields(kind=kind, value=to_numpy(value)))

    @_of_images
    def affine(
        self, x: Value, scale: Any = None, shift: Any = None, function: Function | None = None, is_norm: bool = False
    ) -> Value:
        """Return x * scale + shift; numbers, tensors (C,) of one number a channel, or constants of the network.

        function: (T, C) -> (T, C), the network's own computation, if it rounds in another way. is_norm: product and
            sum are rounded once, as in PyTorch's batch norm.
        """
        if function is None and not is_norm:
            scale, shift = self._of_network(x, scale), self._of_network(x, shift)
            if is_permuted(x):
                inner = x.inputs[0]
                return move_alike(x, self.affine(inner, carried(x, scale), carried(x, shift)))
            if not _by_channel(x, scale):
                multiplied = self.by_place(x, "multiply", scale)
                return multiplied if shift is None else self.affine(multiplied, shift=shift)
            if not _by_channel(x, shift):
                return self.by_place(x if scale is None else self.affine(x, scale), "add", shift)
        a = None if scale is None else self.channel_vector(x, scale)
        b = None if shift is None else self.channel_vector(x, shift)

        uniform = all(v is None or (v == v[0]).all() for v in (a, b))
        factors, terms = (_numbers(v, uniform) for v in (a, b))

        def compute(y: Tensor) -> Tensor:
            y = y if factors is None else y * factors.to(y.dtype)[: y.shape[-1]]
            return y if terms is None else y + terms.to(y.dtype)[: y.shape[-1]]

        made = compute if function is None else self._any_width(function, x, uniform)
        return Channelwise(
            x.shape, (x,), function=made, form=Affine(a, b, is_norm), uniform=uniform, monotone=True
        )  # fmt: skip

    @staticmethod
    def _any_width(function: Function, x: Value, uniform: bool) -> Function:
        """Return a function that, if it is the same for all channels, takes any number of them."""
        if not uniform:
            return function
        channels = x.shape[0]

        def compute(y: Tensor) -> Tensor:
            if y.shape[-1] == channels:
                return function(y)
            return function(y.reshape(-1, 1).expand(-1, channels))[:, 0].reshape(y.shape)

        return compute

    @_of_images
    def clamp(self, x: Value, low: float = -math.inf, high: float = math.inf) -> Value:
        """Return min(max(x, low), high): ReLU, ReLU6, hardtanh."""
        low, high = float(low), float(high)
        if not low <= high:
            self.fail(f"a clamp from {low} to {high} is empty")
        if is_permuted(x):
            return move_alike(x, self.clamp(x.inputs[0], low, high))
        return Channelwise(
            x.shape, (x,), function=lambda y: y.clamp(low, high), form=Clamp(low, high), uniform=True, monotone=True
        )

    @_of_images
    def bend(self, x: Value, slope: Any, pre: Any = None, post: Any = None, function: Function | None = None) -> Value:
        """Return y = x - pre, times slope where y is negative, + post: LeakyReLU, PReLU, RPReLU."""
        if is_permuted(x) and function is pre is post is None and torch.as_tensor(slope).numel() == 1:
            return move_alike(x, self.bend(x.inputs[0], slope))
        s = self.channel_vector(x, slope)
        before = None if pre is None else self.channel_vector(x, pre)
        after = None if post is None else self.channel_vector(x, post)

        uniform = all(v is None or (v == v[0]).all() for v in (s, before, after))
        slopes, shifts, terms = (_numbers(v, uniform) for v in (s, before, after))
        assert slopes is not None

        def compute(y: Tensor) -> Tensor:
            width = y.shape[-1]
            y = y if shifts is None else y - shifts.to(y.dtype)[:width]
            y = torch.where(y < 0, y * slopes.to(y.dtype)[:width], y)
            return y if terms is None else y + terms.to(y.dtype)[:width]

        made = compute if function is None else self._any_width(function, x, uniform)
        return Channelwise(
            x.shape, (x,), function=made, form=Bend(s, before, after), uniform=uniform, monotone=bool((s >= 0).all())
        )  # fmt: skip

    @_of_images
    def curve(self, x: Value, kind: str, function: Function, monotone: bool) -> Value:
        """Return a function that the kernels know by name: sigmoid, tanh, hard_sigmoid, silu, hard_swish."""
        if is_permuted(x):
            return move_alike(x, self.curve(x.inputs[0], kind, function, monotone))
        return Channelwise(x.shape, (x,), function=function, form=Curve(kind), uniform=True, monotone=monotone)

    # -- several values ---------------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        """Return a + b; sides of 1 are stretched."""
        return self._combine("add", a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        """Return a * b; sides of 1 are stretched, as those of a gate (C, 1, 1) are."""
        return self._combine("multiply", a, b)

    def extreme(self, a: Value, b: Value, kind: str) -> Value:
        """Return the larger ("maximum") or smaller ("minimum") of each two numbers; sides of 1 are stretched."""
        return self._combine(kind, a, b)

    def divide(self, a: Value, b: Value) -> Value:
        """Return a / b; sides of 1 are stretched."""
        return self._combine("divide", a, b)

    def _combine(self, kind: str, a: Value, b: Value) -> Value:
        if is_permuted(a) and isinstance(b, Moved) and np.array_equal(a.index, b.index):
            inner = a.inputs[0], b.inputs[0]
            if inner[0].shape == inner[1].shape:
                return move_alike(a, self._combine(kind, *inner))
        if not a.shape and not b.shape:  # one number an image
            made: Value = self.move(
                self._combine(kind, *(self.move(x, lambda p: p[:, None]) for x in (a, b))), lambda p: p[:, 0]
            )
            return made
        if kind == "add" and a.shape == b.shape:
            return Add(a.shape, (a, b))
        if len(a.shape) != len(b.shape):
            self.fail(f"{kind} of {('N', *a.shape)} and {('N', *b.shape)}: reshape one of them to the other's rank")
        shape = tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True))
        if len(shape) == 4:  # depth and height are one axis of a plan: stretched together, or beforehand
            a, b = (self._stretched(x, shape) for x in (a, b))
        return Combine(shape, (a, b), kind=kind)

    def _stretched(self, x: Value, shape: tuple[int, ...]) -> Value:
        if x.shape[1:3] in ((1, 1), shape[1:3]):
            return x
        stretched: Value = self.move(x, lambda p: p.expand(-1, -1, *shape[1:3], -1))
        return stretched

    def concat(self, values: Sequence[Value]) -> Value:
        """Return the channels of all values one after the other."""
        if len(values) == 1:
            return values[0]
        return Concat((sum(v.shape[0] for v in values), *values[0].shape[1:]), tuple(values))

    # -- windows and layers -----------------------------------------------------------------------------------------

    def pool(self, x: Value, kind: str, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Value:
        """Return the maximum ("max") or mean ("avg", padding counted) over windows of a map or a sequence."""
        spread = self.sides(x, dilation, 1)
        window = {"max": MaxPool, "avg": AvgPool}[kind].Fields(
            kernel=self.sides(x, kernel, 1),
            stride=self.sides(x, kernel if stride is None or stride == [] else stride, 1),
            padding=self.sides(x, padding, 0),
            dilation=None if spread == [1, 1] else spread,
        )
        size = self._size(x, window.kernel, window.stride, window.padding, spread)
        return Pool((x.shape[0], *size), (x,), fields=window)

    def sides(self, x: Value, value: Any, missing: int) -> list[int]:
        """Return [y, x] of an argument of a 2-d layer, or of a 1-d one, whose maps have one row."""
        if len(x.shape) == 3:
            return two(value)
        if len(x.shape) == 2:
            return [missing, int(value) if isinstance(value, int) else int(value[0])]
        self.fail(f"takes a map (N, C, H, W) or (N, C, L), got {('N', *x.shape)}")

    def around(self, x: Value, padding: Any) -> list[int]:
        """Return the padding of a convolution's step: that of `sides`, or (top, left, bottom, right) where they differ.

        padding: that of a layer, or numbers before each axis, followed by those behind it.
        """
        axes = len(x.shape) - 1
        if isinstance(padding, int) or len(padding) != 2 * axes:
            return self.sides(x, padding, 0)
        before, behind = (self.sides(x, part, 0) for part in (padding[:axes], padding[axes:]))
        return before if before == behind else [*before, *behind]

    @staticmethod
    def _size(
        x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> list[int]:
        extents = x.shape[1:] if len(x.shape) == 3 else (1, x.shape[1])
        around = [before + behind for before, behind in zip(padding[:2], padding[-2:], strict=True)]
        size = [
            (e + p - d * (k - 1) - 1) // s + 1
            for e, k, s, p, d in zip(extents, kernel, stride, around, dilation, strict=True)
        ]
        return size if len(x.shape) == 3 else size[1:]

    def conv_sides(
        self, x: Value, shape: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
    ) -> tuple[ConvSides, tuple[int, ...]]:
        """Return a convolution's sides and its output's shape; shape: the weight's, (O, C/groups, ...).

        padding: see `around`.
        """
        if isinstance(padding, str):
            self.fail(f"padding must be given in numbers, got {padding!r}")
        if len(shape) != len(x.shape) + 1:
            self.fail(f"a convolution of {len(shape) - 2} axes does not take {('N', *x.shape)}")
        sides: ConvSides = {
            "shape": list(shape) if len(shape) == 4 else [*shape[:2], 1, shape[2]],
            "stride": self.sides(x, stride, 1),
            "padding": self.around(x, padding),
            "dilation": self.sides(x, dilation, 1),
            "groups": int(groups),
        }
        size = self._size(x, sides["shape"][2:], sides["stride"], sides["padding"], sides["dilation"])
        return sides, (shape[0], *size)

    def float_conv(
        self, x: Value, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, pad_value: float = 0.0,
    ) -> Value:  # fmt: skip
        """Return the convolution of a map or a sequence with float weights (O, C/groups, ...)."""
        sides, shape = self.conv_sides(x, weight.shape, stride, padding, dilation, groups)
        filters = to_numpy(weight).reshape(sides["shape"])
        fields = FloatConv.Fields(**sides, pad_value=float(pad_value), weight=filters, bias=_bias(bias))
        return FloatLayer(shape, (x,), fields=fields)

    def float_linear(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """Return x @ weight.T + bias over the last axis, float weight (O, K)."""
        if len(x.shape) > 1:
            filters = weight.reshape(*weight.shape, *[1] * (len(x.shape) - 1))
            return self.channels_last(self.float_conv(self.channels_first(x), filters, bias))
        fields = FloatLinear.Fields(shape=list(weight.shape), weight=to_numpy(weight), bias=_bias(bias))
        return FloatLayer((weight.shape[0],), (x,), fields=fields)

    def step(
        self, x: Value | tuple[Value, ...], shape: Sequence[int], step: StepFields | str,
        attrs: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None,
    ) -> Value:  # fmt: skip
        """Return what a step of bnn_kernels makes of floats; shape: its output's, without the batch.

        step: its fields, such as `Softmax.Fields(log=True)`; or its name, with attributes and tensors.
        """
        fields = STEPS[step].Fields.read(attrs or {}, tensors or {}) if isinstance(step, str) else step
        return OwnStep(tuple(shape), x if isinstance(x, tuple) else (x,), fields=fields)

    # -- moving -----------------------------------------------------------------------------------------------------

    def channels_first(self, x: Value) -> Value:
        """Return a value with its last axis, that of a token's features, as channels."""
        return self.move(x, lambda places: places.movedim(-1, 1))

    def channels_last(self, x: Value) -> Value:
        """Undo `channels_first`."""
        return self.move(x, lambda places: places.movedim(1, -1))

    def move(self, x: Value, function: Callable[[Tensor], Any], compose: bool = True) -> Any:
        """Return what a function that only moves numbers makes of x: views, slices, shuffles, padding with zeros.

        function: is called on a float64 tensor (2, *shape) of places; it must treat both images alike. compose: become
            one with the moving that made x.
        """
        base, places = origin(x, compose)
        with torch.no_grad():
            results = function(places)
        single = isinstance(results, Tensor)
        moved = [self._moved(base, result) for result in ([results] if single else results)]
        return moved[0] if single else tuple(moved)

    def _moved(self, base: Value, result: Any) -> Value:
        """Return the value whose numbers are at these places of the base, float64 (2, ...)."""
        if not isinstance(result, Tensor):
            self.fail("does more than move the numbers of each image")
        count = math.prod(base.shape)
        found = result.numpy()
        numbers = np.rint(found).astype(np.int64)
        if (found != numbers).any() or numbers.min(initial=0) < 0 or numbers.max(initial=0) > 2 * count:
            self.fail("does more than move the numbers of each image, or pads with something else than zeros")
        by_image = len(numbers) == 2 and bool((numbers[0] <= count).all())
        first = numbers[0] if by_image else np.empty(0)
        if by_image and not np.array_equal(numbers[1], second_image(first, count)):
            self.fail("does more than move the numbers of each image, or pads with something else than zeros")
        if not by_image:
            return self.off_batch(base, result)
        same = first.shape == base.shape and np.array_equal(first.reshape(-1), np.arange(1, first.size + 1))
        return base if same else Moved(first.shape, (base,), index=first)

    def off_batch(self, base: Value, places: Tensor) -> OffBatch:
        """Return a view whose first axis is not the batch; places: float64, 1 + where the numbers of two images lie."""
        error = ConversionError(f"{self.place}: changes the batch; only views of each image by itself can be converted")
        return OffBatch(tuple(places.shape[1:]), error=error, base=base, places=places)
