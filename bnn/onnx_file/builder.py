"""The network as it grows: operators are added and tried at once, and levels wait for whoever reads them."""

import copy
import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from bnn.onnx_file.errors import OnnxError
from bnn.onnx_file.network import Operation, network
from bnn.onnx_file.quantizers import CountedLevels, EvenLevels, Table, count_reached, evenly_spaced
from bnn.onnx_file.read import Node
from bnn.onnx_file.values import Const, Counted, Padded, Quantized, Real, Value

# The thresholds of a level that is never, or always, reached: a difference with infinity would be none.
_FARTHEST = 3e38
# Attributes that a module has, though its class has not, and words that are no names in Python.
_TAKEN = {"training", "code", "graph", *keyword.kwlist}


class Builder:
    """Layers by name, and what each reads. node: the one that is read now; batch: the sides of inputs, if fixed."""

    def __init__(self, batch: int | None):
        self.batch = batch
        self.node: Node
        self.layers: dict[str, nn.Module] = {}
        self.reads: dict[str, tuple[str, ...]] = {}
        self.names: set[str] = set()
        # Tensors with one more last axis, by name, and those that they were before.
        self.stacked: dict[str, Real] = {}

    def fail(self, reason: str) -> NoReturn:
        """OnnxError that names the operator."""
        raise OnnxError(f"{self.node}: {reason}")

    def need(self, is_so: bool, reason: str) -> None:
        """OnnxError that names the operator, unless it is so."""
        if not is_so:
            self.fail(reason)

    # -- names ------------------------------------------------------------------------------------------------------

    def place(self, suffix: str = "") -> str:
        """Return a free name for a layer of the node."""
        made = next((name for name in self.node.outputs if name), "")
        words = re.sub(r"\W+", "_", self.node.name or f"{self.node.op}_{made}").strip("_")
        return self.free(words + suffix)

    def free(self, name: str) -> str:
        """Return a name that no layer and no attribute of a module has yet."""
        base = name if name[:1].isalpha() else f"layer_{name}"
        found, count = base, 1
        while found in self.names or found in _TAKEN or hasattr(fx.GraphModule, found):
            count += 1
            found = f"{base}_{count}"
        self.names.add(found)
        return found

    # -- layers -----------------------------------------------------------------------------------------------------

    def add(self, module: nn.Module, *inputs: Real, place: str = "") -> Real:
        """Add a layer, run it on what its inputs were in the trial, and return its result."""
        place = place or self.place()
        module.eval()
        try:
            with torch.no_grad():
                example = module(*(x.example for x in inputs))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            self.fail(f"it does not take what it is given: {str(error).splitlines()[0]}")
        self.layers[place] = module
        self.reads[place] = tuple(x.name for x in inputs)
        return Real(place, example)

    def call(self, function: Callable[..., Any], *values: Value, **options: Any) -> Value:
        """Return a function of values: computed now if all are constant, else as a layer."""
        if all(isinstance(value, Const) for value in values):
            return Const(self._tried(function, *(value.tensor for value in values), **options))  # type: ignore[union-attr]
        given = [value if isinstance(value, Const) else self.real(value) for value in values]
        constants = [value.tensor if isinstance(value, Const) else None for value in given]
        reals = [value for value in given if isinstance(value, Real)]
        return self.add(Operation(function, constants, **options), *reals)

    def number_by_number(self, function: Callable[..., Any], *values: Value, **options: Any) -> Value:
        """Return what `call` does of a function of each number: of a few values, what it makes of their table."""
        counted = [value for value in values if isinstance(value, Counted)]
        others = [value for value in values if not isinstance(value, Counted)]
        if len(counted) != 1 or any(not isinstance(v, Const) or not _is_one_number(v.tensor) for v in others):
            return self.call(function, *values, **options)
        given = [value.table if isinstance(value, Counted) else value.tensor.reshape(-1)[0] for value in values]  # type: ignore[union-attr]
        table = self._tried(function, *given, **options)
        if table.ndim == 0:  # of constants alone, which torch.where may choose
            table = table.expand(len(counted[0].table))
        (x,) = counted
        return Counted(x.before, x.bounds, x.flip, x.axis, table, x.place, x.stacked)

    def _tried(self, function: Callable[..., Any], *given: Tensor, **options: Any) -> Tensor:
        try:
            made: Tensor = function(*given, **options)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            self.fail(f"it does not take what it is given: {str(error).splitlines()[0]}")
        return made

    # -- what waits -------------------------------------------------------------------------------------------------

    def real(self, value: Value) -> Real:
        """Return a value as the tensor that it is, made by a layer if it waited."""
        if isinstance(value, Real):
            return value
        if isinstance(value, Const):
            self.fail("it reads a constant where a tensor that depends on an input is expected")
        if isinstance(value, Padded):
            inside = self.real(value.inside)
            pad = Operation(torch.nn.functional.pad, pad=value.pads, value=value.value)
            return self.add(pad, inside, place=self.free(value.place))
        if isinstance(value, Counted):
            found = self.settled(value)
            return found if isinstance(found, Real) else self.real(found)
        self.need(value.codes is None, "it computes with the integers of QuantizeLinear: DequantizeLinear comes first")
        if not value.made:
            value.made.append(self.add(self.quantizer(value), value.before, place=self.free(value.place)))
        return value.made[0]

    @staticmethod
    def quantizer(value: Quantized) -> EvenLevels | CountedLevels:
        """Return a quantizer of one's own for a value."""
        return copy.deepcopy(value.quantizer)

    def settled(self, value: Value) -> Const | Real | Quantized | Padded:
        """Return a value of which nothing more becomes part: comparisons are levels, or a table that is looked up."""
        if not isinstance(value, Counted):
            return value
        if not value.made:
            value.made.append(self._counted(value))
        return value.made[0]

    def _counted(self, value: Counted) -> Quantized | Real:
        self.need(not value.stacked, "it reads comparisons with several thresholds that were not summed up")
        bounds, flip, table = value.bounds, value.flip, value.table
        rank = value.before.example.ndim
        if table.dtype == torch.bool:
            look_up = Operation(_looked_up, (None, bounds.sort(0).values, flip, table), axis=value.axis)
            return self.add(look_up, value.before, place=self.free(value.place))
        # Integers wait for the scale of a DequantizeLinear.
        codes = None if table.is_floating_point() else (torch.tensor(1.0), torch.tensor(0))
        table = table.to(torch.float32)
        if bool((table.diff() < 0).all()):  # a smaller number, a larger value
            bounds, flip, table = bounds.flip(0), ~flip, table.flip(0)
        # (x >= t) xor flip is -x >= the float after -t.
        up = torch.nextafter(-bounds, torch.tensor(torch.inf))
        bounds = torch.where(flip, up, bounds).sort(0).values.clamp(-_FARTHEST, _FARTHEST)
        before = value.before
        if bool(flip.any()):
            sign = _along(torch.where(flip, -1.0, 1.0), value.axis, rank)
            before = self.add(Operation(torch.mul, (None, sign)), before, place=self.free(f"{value.place}_direction"))
        if len(bounds) == 1 and bounds.unique().numel() > 1:
            # The difference of two floats is 0 only if they are equal.
            less = _along(bounds[0], value.axis, rank)
            before = self.add(Operation(torch.sub, (None, less)), before, place=self.free(f"{value.place}_bounds"))
            bounds = torch.zeros(1, 1)
        elif bool((bounds == bounds[:, :1]).all()):
            bounds = bounds[:, :1]
        if evenly_spaced(table) is None:
            return self.add(Table(bounds, table, value.axis), before, place=self.free(value.place))
        return Quantized(before, CountedLevels(bounds.clone(), table.clone(), value.axis), value.place, codes)

    def moved(self, function: Callable[..., Any], value: Value, keeps_channels: bool = False, **options: Any) -> Value:
        """Return what a view, a permutation or a maximum makes of a value.

        Levels are made after it. keeps_channels: whether no channel is moved.
        """
        value = self.settled(value)
        if isinstance(value, Const):
            return value.moved(lambda x: function(x, **options))
        if isinstance(value, Quantized) and (keeps_channels or not value.by_channel):
            before = self.add(_module(function, options), value.before)
            return Quantized(before, value.quantizer, value.place, value.codes)
        return self.add(_module(function, options), self.real(value))

    def network(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """Return the module of what these outputs need."""
        needed, stack = set[str](), list(outputs)
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack.extend(self.reads.get(name, ()))
        return network({name: self.layers[name] for name in self.layers if name in needed}, self.reads, inputs, outputs)


def _module(function: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    return function if isinstance(function, nn.Module) else Operation(function, **options)


def _is_one_number(x: Tensor) -> bool:
    return bool(x.numel()) and bool((x == x.reshape(-1)[0]).all())


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """Return numbers of channels (C,), or one of all, shaped to meet axis `axis` of a tensor of so many axes."""
    sides = [1] * rank
    sides[axis] = -1
    return values.reshape(sides)


def _looked_up(x: Tensor, bounds: Tensor, flip: Tensor, table: Tensor, axis: int) -> Tensor:
    reached = count_reached(x, bounds, axis)
    return table[torch.where(_along(flip, axis, x.ndim), len(bounds) - reached, reached)]
