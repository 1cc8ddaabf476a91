"""From recorded operations to the typed graph: each operation asks its rule what it is made of."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bnn_kernels.model.program import as_spec_shape, input_register
from bnn_kernels.steps.cached_attention import CachedAttention
from bnn_kernels.steps.embedding import Embedding
from torch import Tensor, nn

from bnn.converter.capture.record import (
    Captured,
    Node,
    Output,
    capture,
    leaves,
    mapped,
    numbers_of,
    random_inputs,
)
from bnn.converter.errors import ConversionError
from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import (
    Input,
    Levels,
    Moved,
    OffBatch,
    OwnStep,
    Refused,
    Unpacked,
    Value,
    live_values,
    refused,
)
from bnn.converter.off_batch import by_parts
from bnn.converter.recognize.detours import detour
from bnn.converter.recognize.pointwise import Pointwise, quantized
from bnn.converter.recognize.whole import ends, is_whole
from bnn.converter.registry import Rule, rule_of_function, rule_of_module, supported_modules, why_no_rule
from bnn.converter.sources import batch_first, levels_at
from bnn.quantizers.base import Quantizer


@dataclass(frozen=True)
class Lowered:
    """What a node was made into. made: a Value, or a tensor that does not depend on the images, for each result."""

    node: Node
    made: Sequence[Any]


def _holds_pixels(value: Value) -> bool:
    """Whether a value is an input of pixels, as it is or moved: bytes, which are whole numbers."""
    while isinstance(value, Moved):
        value = value.inputs[0]
    return isinstance(value, Input) and value.pixels


def _fits(value: Value, dtype: torch.dtype) -> bool:
    """Whether an integer type holds all numbers of a value."""
    if dtype.is_floating_point or dtype.is_complex or not is_whole(value):
        return False
    low, high = ends(value)
    return torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max


def _in_order(result: Any) -> list[Any]:
    """Return what lies in tuples and lists, such as an LSTM's output and its states (h, c)."""
    return [part for item in result for part in _in_order(item)] if isinstance(result, tuple | list) else [result]


def _reads_integers(value: Value) -> bool:
    return isinstance(value, OwnStep) and isinstance(value.fields, Embedding.Fields | CachedAttention.Fields)


class Lowering:
    """Walks a recorded network.

    given: what its inputs are, of a part of another network; place: of that part, which names all that is in it.
    """

    def __init__(self, captured: Captured, given: Sequence[Value] | None = None, place: str = ""):
        self.captured, self.place = captured, place
        self.is_part = given is not None
        self.values: dict[Output, Any] = {}
        self.lowered: list[Lowered] = []
        self.pointwise = Pointwise()
        self.batch_axes: list[int] = []
        # Outputs whose batch is not their first axis, and which one it is.
        self.ends: dict[Value, int] = {}
        for i, node in enumerate(captured.inputs):
            found = node.results[0]
            pixels = found.dtype == torch.uint8
            indices = not found.is_floating_point() and not pixels
            shape = tuple(found.shape[1:])
            value: Value = Input(
                as_spec_shape(shape) if len(shape) == 4 else shape,
                register=input_register(i),
                indices=indices,
                pixels=pixels,
            )
            if len(shape) == 4:  # a volume is a view of a map
                value = Moved(shape, (value,), index=np.arange(1, math.prod(shape) + 1).reshape(shape))
            self.values[Output(node, 0)] = value if given is None else given[i]
        self.of_integers = any(node.results[0].dtype == torch.int64 for node in captured.inputs)

    def run(self) -> Any:
        """Return what the network returns, with a Value for each tensor that depends on an input."""
        for node in self.captured.nodes:
            if node in self.captured.inputs:
                made: Sequence[Any] = [self.values[Output(node, 0)]]
            else:
                made = self._lower(node)
                for i, value in enumerate(made):
                    self.values[Output(node, i)] = value
            self.lowered.append(Lowered(node, made))
        return mapped(self.captured.result, self._value)

    def outputs(self) -> list[Value]:
        """Return the outputs of the network, batch first; ConversionError if one of them cannot be converted.

        batch_axes: where the network itself has the batch of each.
        """
        result = self.run()
        outputs = _in_order(result)
        for value in outputs:
            if not isinstance(value, Value):
                kind = (
                    "a dict" if isinstance(value, dict) else "a constant" if isinstance(value, Tensor) else repr(value)
                )
                raise ConversionError(
                    "a network that returns a tensor, or a tuple of tensors, that depends on its input can be "
                    f"converted; this one returns {kind}"
                )
        ends = [self._batch_first(value) for value in outputs]
        outputs, self.batch_axes = [value for value, _ in ends], [axis for _, axis in ends]
        cause = refused(outputs)
        if cause is not None:
            raise cause.error
        for value in live_values(outputs):
            for operand in value.inputs:
                if isinstance(operand, Input) and operand.indices and not _reads_integers(value):
                    raise ConversionError(
                        f"{value.source or 'the network'}: an input of integers can be converted for embeddings only; "
                        "give a float example, and convert before the network"
                    )
        return outputs

    def _batch_first(self, value: Value) -> tuple[Value, int]:
        """Return an output batch first, and which axis the network has it on: 1 of the states of nn.LSTM."""
        for axis in range(1, value.places.ndim) if isinstance(value, OffBatch) else ():
            moved: Value = Builder(self.place).move(value, functools.partial(torch.movedim, source=axis, destination=0))
            if not isinstance(moved, OffBatch):
                moved.source = moved.source or batch_first(value.source, axis)
                self.ends[value] = axis
                return moved, axis
        return value, 0

    def _value(self, part: Any) -> Any:
        return self.values[part] if isinstance(part, Output) else part

    def _lower(self, node: Node) -> Sequence[Any]:
        args, kwargs = mapped((node.args, node.kwargs), self._value)
        given = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
        if not given:
            return numbers_of(node, args, kwargs)  # depends on nothing but parameters
        build = Builder(self.place or node.place, self._part)
        made = self._by_rule(node, build, args, kwargs)
        return self._recognized(node, build, args, kwargs, made) or made

    def _recognized(self, node: Node, build: Builder, args: Any, kwargs: Any, made: Sequence[Any]) -> Sequence[Any]:
        """Return the levels that an operation is, if it is such; else nothing."""
        if len(made) != 1 or not isinstance(made[0], Value) or isinstance(made[0], OffBatch):
            return []
        found = self.pointwise.levels(node, args, kwargs, made[0])
        if found is None and isinstance(made[0], Refused):
            way = detour(node, self._value)
            found = None if way is None else quantized(*way, exact=True) or quantized(*way)
        if found is None:
            return []
        try:
            levels = [build.quantize(*found)]
            self._check(build, node, levels)
        except ConversionError:
            return []
        return levels

    def _by_rule(self, node: Node, build: Builder, args: Any, kwargs: Any) -> Sequence[Any]:
        given = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
        try:
            value = self._made(node, build, args, kwargs)
            made = [part for part in leaves(value) if isinstance(part, Value | Tensor)]
            self._check(build, node, made)
        except ConversionError as error:
            # Gradient estimators compute much that cancels out: only what is needed must be convertible.
            cause = refused(given)
            error = _with_line(error, node) if cause is None else cause.error
            return [Refused(tuple(found.shape[1:]), error=error) for found in node.results]
        return made

    def _made(self, node: Node, build: Builder, args: Any, kwargs: Any) -> Any:
        rule = self._rule(node, build)
        try:
            if any(isinstance(a, OffBatch) for a in leaves((args, kwargs))):
                found = by_parts(node, build, args, kwargs, rule)
                if found is not None:
                    return found
            return rule(build, *args, **kwargs)
        except ConversionError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ConversionError(f"{build.place}: its rule does not take what it is given: {error}") from error

    def _rule(self, node: Node, build: Builder) -> Rule:
        target = node.target
        if not isinstance(target, nn.Module):
            rule = rule_of_function(target)
            if rule is None:
                build.fail(
                    f"function {node.base!r} cannot be converted; use one that can, or put it into a module of its own "
                    "and give that a rule with bnn.converter.register_rule"
                )
            return rule
        of_module = rule_of_module(target)
        if of_module is not None:
            return functools.partial(_call, of_module, target)
        if isinstance(target, Quantizer):
            return lambda build, x: build.quantize(x, target, f"{build.place} levels")
        name = type(target).__name__
        if (why := why_no_rule(target)) != "":
            build.fail(f"{name} cannot be converted: {why}; give it a rule of its own with bnn.converter.register_rule")
        build.fail(
            f"{name} cannot be converted. Supported are {', '.join(supported_modules())}; replace the module, or give "
            "it a rule with bnn.converter.register_rule"
        )

    def _check(self, build: Builder, node: Node, made: Sequence[Any]) -> None:
        """Name the places that values come from, and hold their shapes against what the network computes."""
        if len(made) != len(node.results):
            build.fail(f"its rule gives {len(made)} tensors, the network {len(node.results)}: correct the rule")
        for i, (value, real) in enumerate(zip(made, node.results, strict=True)):
            if not isinstance(value, Value):
                continue
            if value.shape != tuple(real.shape[1:]):
                shapes = f"{('N', *value.shape)}, the network computes {('N', *real.shape[1:])}"
                build.fail(f"its rule gives {shapes}: correct the rule")
            # Integers that are inputs have a refusal of their own.
            exact = self.of_integers or real.dtype in (torch.float32, torch.float64, torch.bool) or _holds_pixels(value)
            if not isinstance(value, Refused) and not exact and not _fits(value, real.dtype):
                build.fail(
                    f"gives {str(real.dtype).removeprefix('torch.')}, but packed networks compute in float32 and round "
                    "nothing to fewer digits: leave the cast out in evaluation, and autocast out of forward"
                )
            if not self.is_part:
                self._name(value, node.place_of(i))
            for part in live_values([value.base if isinstance(value, OffBatch) else value]):
                part.owner = part.owner or build.place

    @staticmethod
    def _name(value: Value, place: str) -> None:
        if isinstance(value, Unpacked):
            (levels,) = value.inputs
            if isinstance(levels, Levels) and not levels.owner:  # the rule's own, of which it gives the values
                levels.source = levels.source or levels_at(place, levels.planes, levels.table)
        value.source = value.source or place

    def _part(self, module: nn.Module, values: Sequence[Value], place: str) -> Any:
        """Return what a module makes of values, whatever its code: it is recorded as the network is."""
        examples = [torch.zeros(1, *value.shape) for value in values]
        return Lowering(capture(module, random_inputs(examples)), values, place).run()


def _call(rule: Rule, module: nn.Module, build: Builder, *args: Any, **kwargs: Any) -> Any:
    return rule(build, module, *args, **kwargs)


def _with_line(error: ConversionError, node: Node) -> ConversionError:
    return error if not node.line or node.line in str(error) else ConversionError(f"{error} ({node.line})")
