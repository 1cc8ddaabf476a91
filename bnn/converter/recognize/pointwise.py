"""Which function of each number of another value an operation is, through whatever network writes in between.

s + (s == 0), with s = sign(x), reads x alone, number by number. Such a function is followed through operations that
have no step of their own; where it takes few values, it is levels of x.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnn.converter.capture.record import Node, leaves, mapped
from bnn.converter.graph.permutations import is_permuted, move_alike
from bnn.converter.graph.values import Channelwise, Clamp, Refused, Unpacked, Value, refused
from bnn.converter.levels.table import LARGEST_FLOAT
from bnn.converter.recognize.staircase import Function, quantizer_of, staircase
from bnn.quantizers.base import Quantizer

aten = torch.ops.aten

# Operations that jump where their operand does not.
_JUMPS = {
    aten.sign, aten.sgn, aten.round, aten.floor, aten.ceil, aten.trunc, aten.eq, aten.ne, aten.gt, aten.ge, aten.lt,
    aten.le,
}  # fmt: skip
_OTHERS = {
    aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.abs, aten.clamp, aten.clamp_min, aten.clamp_max,
    aten.where, aten.relu, aten.hardtanh, aten.maximum, aten.minimum, aten.pow, aten.tanh, aten._to_copy,
    aten.masked_fill, aten.logical_and, aten.logical_or, aten.logical_not, aten.bitwise_and,
    aten.bitwise_or, aten.bitwise_not, aten.exp, aten.sigmoid, aten.copy, aten.fill,
}  # fmt: skip
# Operands of masked writes: x[mask] = y.
_MASKED = {aten.index_put}

View = tuple[Value, Function]


def _then(first: Function, second: Function) -> Function:
    return lambda x: second(first(x))


def _remembered(function: Function) -> Function:
    """Return a function that computes its last result once: what is made of it may read it at many places."""
    last: list[Tensor] = []

    def of_last(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, function(x)]
        return last[1]

    return of_last


class Pointwise:
    """Knows of values of a graph which functions of others they are."""

    def __init__(self) -> None:
        self.views: dict[Value, View] = {}
        self.permuted: dict[tuple[Value, tuple[int, ...], bytes], Value] = {}

    def _first(self, value: Value) -> Value:
        """Return the first value met of the same numbers in the same order: one that is permuted is made anew often."""
        if not is_permuted(value):
            return value
        return self.permuted.setdefault((value.inputs[0], value.shape, value.index.tobytes()), value)

    def _ways(self, value: Value) -> Iterator[View]:
        """Yield the values of whose each number a value is a function, and the function, from itself on backwards."""
        function: Function = lambda x: x  # noqa: E731
        while True:
            value = self._first(value)
            yield value, function
            if value in self.views:
                before, own = self.views[value]
            elif isinstance(value, Unpacked) and (quantizer := _quantizer_of(value)) is not None:
                before, own = value.inputs[0].inputs[0], quantizer
            elif (step := _uniform_step(value)) is not None:
                before, own = step
            else:
                return
            value, function = before, _then(own, function)

    def levels(self, node: Node, args: Any, kwargs: Any, made: Value) -> tuple[Value, Quantizer] | None:
        """Return a value and the quantizer of it that an operation is; None if it is none, or already known as one.

        made: what the rule made of it.
        """
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in _JUMPS and packet not in _OTHERS and packet not in _MASKED:
            return None
        operands = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
        jumps = packet in _JUMPS or any(a in self.views or isinstance(a, Unpacked) for a in operands)
        constants = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
        if not jumps or any(x.numel() != 1 and not _is_uniform(x) for x in constants):
            return None
        shape = made.shape
        if any(a.shape != shape for a in operands):
            return None
        view = self._view(node, operands, args, kwargs)
        if view is None or view[0] is made:
            return None
        self.views[made] = view
        if isinstance(made, Unpacked) or packet is aten._to_copy:
            return None
        return quantized(*view)

    def _is_own(self, value: Value) -> bool:
        """Whether a value may be the one of which all operands are functions: one that does not jump itself."""
        return value not in self.views and not (isinstance(value, Unpacked) and _quantizer_of(value) is not None)

    def _view(self, node: Node, operands: Sequence[Value], args: Any, kwargs: Any) -> View | None:
        ways = [list(itertools.islice(self._ways(a), 32)) for a in operands]
        common = (b for b, _ in ways[0] if all(any(b is other for other, _ in way) for way in ways[1:]))
        base = next(filter(self._is_own, common), None)
        if base is None or refused([base]) is not None:
            return None
        functions = [next(f for b, f in way if b is base) for way in ways]
        # Of those operands that are values; what a network has written constants to is none.
        pairs = zip(leaves((node.args, node.kwargs)), leaves((args, kwargs)), strict=True)
        dtypes = [part.node.results[part.index].dtype for part, a in pairs if isinstance(a, Value)]
        run, is_write = node.run, getattr(node.target, "overloadpacket", None) in _MASKED
        assert run is not None

        def function(x: Tensor) -> Tensor:
            found = [f(x) for f in functions]
            given = iter([y.bool() if dtype == torch.bool else y for y, dtype in zip(found, dtypes, strict=True)])

            def operand(part: Any) -> Any:
                if isinstance(part, Value):
                    return next(given)
                if isinstance(part, Tensor):
                    one = part.detach().reshape(-1)[0]
                    return one.to(x.dtype) if one.is_floating_point() else one
                return part

            positional, named = mapped((args, kwargs), operand)
            if is_write:  # of numbers that the mask chooses
                positional = [positional[0].expand(x.shape), *positional[1:]]
            made: Tensor = run(*positional, **named)
            return made

        return base, _remembered(function)


def quantized(base: Value, function: Function, exact: bool = False) -> tuple[Value, Quantizer] | None:
    """Return a value, the base or one from which it is made, and the quantizer of it that a function of the base is.

    exact: as of `staircase`.
    """
    for _ in range(4):  # what bounds the function may lie before
        found = staircase(function, *_range(base), exact)
        if found is not None and (quantizer := quantizer_of(found)) is not None:
            return base, quantizer
        step = _uniform_step(base)
        if step is None:
            return None
        base, function = step[0], _then(step[1], function)
    return None


def _uniform_step(value: Value) -> View | None:
    """Return the value of whose each number a value is one function, and the function; None if it is not of one."""
    made = value.inputs[0] if is_permuted(value) else value
    if not isinstance(made, Channelwise) or not made.uniform:
        return None
    before = move_alike(value, made.inputs[0]) if is_permuted(value) else made.inputs[0]
    return before, _as_columns(made.function)


def _is_uniform(x: Tensor) -> bool:
    flat = x.reshape(-1)
    return bool(flat.numel()) and bool((flat == flat[0]).all())


def _as_columns(function: Function) -> Function:
    def of_any_shape(x: Tensor) -> Tensor:
        return function(x.reshape(-1, 1)).reshape(x.shape)

    return of_any_shape


def _quantizer_of(value: Unpacked) -> Quantizer | None:
    levels: Any = value.inputs[0]
    return levels.quantizer if levels.uniform else None


def _range(value: Value) -> tuple[float, float]:
    """Return between which numbers a value lies, as far as is known."""
    value = value.inputs[0] if is_permuted(value) else value
    if isinstance(value, Refused) or not isinstance(value, Channelwise):
        return -LARGEST_FLOAT, LARGEST_FLOAT
    if isinstance(value.form, Clamp):
        return max(value.form.low, -LARGEST_FLOAT), min(value.form.high, LARGEST_FLOAT)
    return -LARGEST_FLOAT, LARGEST_FLOAT
