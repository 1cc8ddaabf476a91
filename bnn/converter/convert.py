"""bnn.convert: a trained network becomes a packed model."""

import contextlib
import copy
import functools
import importlib
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import bnn_kernels as bk
import torch
from bnn_kernels.model.program import input_register
from bnn_kernels.steps.embedding import Embedding
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

import bnn
from bnn.converter import rules_attention as rules_attention
from bnn.converter import rules_compare as rules_compare
from bnn.converter import rules_elementwise as rules_elementwise  # registers the rules
from bnn.converter import rules_layers as rules_layers
from bnn.converter import rules_normalize as rules_normalize
from bnn.converter import rules_pool as rules_pool
from bnn.converter import rules_quantized as rules_quantized
from bnn.converter import rules_shape as rules_shape
from bnn.converter import rules_transposed as rules_transposed
from bnn.converter.builder import Builder
from bnn.converter.emitter import Emitted, emit
from bnn.converter.errors import ConversionError
from bnn.converter.graph import Input, Levels, Moved, OwnStep, Refused, Unpacked, Value, live_values, refused
from bnn.converter.level_source import levels_at
from bnn.converter.planes_check import check_planes
from bnn.converter.registry import Rule, rule_of_function, rule_of_module, supported_modules, why_no_rule
from bnn.converter.trace import BATCH, Found, Traced, check_trace, results, trace
from bnn.converter.verify import Lowered, check_batches, check_values
from bnn.layers.base import shapes_only
from bnn.quantizers.base import Quantizer
from bnn.quantizers.data_initialized import warn_of_uninitialized


def _versions() -> dict[str, str]:
    own = {"python": platform.python_version(), "bitplanes": bnn.__version__}
    return own | {name: _version(name) for name in ("torch", "numpy", "numba")}


def _version(name: str) -> str:
    """Return the version of an installed package; one that lies on the path alone has no metadata."""
    try:
        return version(name)
    except PackageNotFoundError:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))


def check_model(model: nn.Module) -> None:
    """ConversionError unless the model is in evaluation mode, finite, and does nothing beside its forward."""
    if model.training:
        raise ConversionError(
            "the model is in train mode, where batch norm and dropout depend on the batch: call model.eval() first"
        )
    waiting = [name for name, p in _tensors(model) if nn.parameter.is_lazy(p)]
    if waiting:
        raise ConversionError(f"{waiting[0]} has no shape yet: run the model once on an input")
    for path, module in model.named_modules():
        if module.training:
            raise ConversionError(f"{path} is in train mode though the model is not: call model.eval() first")
        if module._forward_hooks or module._forward_pre_hooks:
            raise ConversionError(
                f"{path or 'the model'} has forward hooks, which may change its output: remove them (those of pruning, "
                "weight_norm and spectral_norm with torch.nn.utils.prune.remove, remove_weight_norm and "
                "remove_spectral_norm)"
            )
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise ConversionError("there are forward hooks for all modules, which may change their outputs: remove them")
    bad = [name for name, p in model.state_dict().items() if p.is_floating_point() and not _is_finite(p)]
    if bad:
        raise ConversionError(
            f"{bad[0]} holds NaN or infinite values: the training diverged, there is nothing to convert"
        )


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite: the smallest and the largest are, of which NaN is either."""
    return not x.numel() or all(bool(end.isfinite()) for end in x.aminmax())


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def check_examples(example_input: Any) -> list[Tensor]:
    """Return the examples as tensors of one image each, see `as_input`; TypeError or ConversionError on others."""
    examples = list(example_input) if isinstance(example_input, tuple | list) else [example_input]
    for x in examples:
        integers = isinstance(x, Tensor) and x.dtype in (torch.int32, torch.int64) and x.ndim == 2
        pixels = isinstance(x, Tensor) and x.dtype == torch.uint8
        if not integers and not pixels and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise TypeError(
                "example_input must be a float tensor, uint8 pixels, or int32 or int64 (N, T) for embeddings, got "
                f"{getattr(x, 'dtype', type(x))}"
            )
        if x.ndim not in (2, 3, 4) or 0 in x.shape:
            raise ConversionError(
                f"example_input must have shape (N, C, H, W), (N, C, L) or (N, K) with N >= 1, got {tuple(x.shape)}"
            )
    return [as_input(x[:1]) for x in examples]


def as_input(x: Tensor) -> Tensor:
    """Return an input on the CPU, where a packed network has it: float32, uint8 pixels or int64 indices."""
    if x.dtype == torch.uint8:
        return x.detach().cpu()
    return x.detach().to("cpu", torch.float32 if x.is_floating_point() else torch.int64)


def convert(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> bk.PackedModel:
    """Convert a trained network into bits.

    model: in evaluation mode. Its Python code is traced (torch.fx), so branches, sums, shared modules and functional
        calls are welcome; control flow that depends on data is not. It is not changed.
    example_input: float (N, C, H, W), (N, C, L) or (N, K), of which only the shape counts; a tuple for several inputs.
        Integers (N, T), int32 or int64, are for embeddings. With uint8 pixels the packed network takes uint8; its
        model normalizes them itself (`bnn.layers.PixelNormalize`, `bnn.quantizers.PixelLevels`).

    Returns a PackedModel that answers like `model(x)` in evaluation: exactly where integers are fed in, within float
    rounding elsewhere; `bnn.check_parity` shows it layer by layer. Raises ConversionError, with the dotted path of the
    module, on what it cannot convert; `bnn.converter.register_rule` teaches it a module of your own. Warns of
    quantizers that have never seen data (`bnn.calibrate`).
    """
    check_model(model)
    warn_of_uninitialized(model, f"{type(model).__name__} is converted")
    examples = check_examples(example_input)
    # Thresholds are those of the float32 network on a CPU, where the packed model runs.
    outputs, (steps, registers, _) = plan(_copied(model).to("cpu", torch.float32), examples)
    shapes = [tuple(x.shape[1:]) for x in examples]
    dtypes = ["uint8" if x.dtype == torch.uint8 else "float32" for x in examples]
    ends = [(register, value.shape) for register, value in zip(registers, outputs, strict=True)]
    return bk.PackedModel(shapes, steps, {"model": type(model).__name__}, _versions(), ends, dtypes)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ConversionError(f"{type(model).__name__} cannot be copied by copy.deepcopy: {error}") from error


def plan(network: nn.Module, examples: Sequence[Tensor], checked: bool = True) -> tuple[list[Value], Emitted]:
    """Return the outputs of a network in evaluation mode, float32 on a CPU, and the steps that compute them.

    checked: hold them against what the network computes. Without it the shapes alone are sure to be the network's.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        traced = trace(network)
        with contextlib.nullcontext() if checked else shapes_only(network):
            lowering = Lowering(traced, examples)
        if checked:
            check_planes(network, examples)
        outputs = lowering.run()
        if checked:
            check_trace(network, traced, lowering.found, examples)
            check_values(traced, lowering.lowered, outputs)
            check_batches(traced, lowering.lowered)
        emitted = emit(outputs)
    if not emitted.steps:
        raise ConversionError("nothing is left of the model: it has only layers that do nothing in evaluation")
    return outputs, emitted


def _holds_pixels(value: Value) -> bool:
    """Whether a value is an input of pixels, as it is or moved: bytes, which are whole numbers."""
    while isinstance(value, Moved):
        value = value.inputs[0]
    return isinstance(value, Input) and value.pixels


def _is_embedding(value: Value) -> bool:
    return isinstance(value, OwnStep) and isinstance(value.fields, Embedding.Fields)


class Lowering:
    """Walks a traced network and asks the rule of each node what it is made of."""

    def __init__(self, traced: Traced, examples: Sequence[Tensor]):
        self.traced = traced
        self.modules = dict(traced.module.named_modules())
        # What every node computes, for the shapes, and for all that does not depend on the input.
        self.found: Found = results(traced, examples, self._works_in_place)
        self.results = self.found.at_the_end
        self.values: dict[fx.Node, Any] = {}
        # The same in the order of the graph, as nodes made it: later ones may overwrite it.
        self.lowered: list[Lowered] = []
        self.inputs = [node for node in traced.nodes if node.op == "placeholder"][: len(examples)]

    def run(self) -> list[Value]:
        """Return the outputs of the network."""
        for node in self.traced.nodes:
            if node.op == "output":
                outputs = self._outputs(node)
                cause = refused(outputs)
                if cause is not None:
                    raise cause.error
                self._check_indices(outputs)
                return outputs
            before = dict(self.values)
            value = self._lower(node)
            written = [other for other in before if self.values[other] is not before[other]]
            self.values[node] = value
            self.lowered.append(Lowered(node, value, self.found.as_made[node], written))
        raise AssertionError("a graph has an output")

    def _lower(self, node: fx.Node) -> Any:
        found = self.results[node]
        if node in self.inputs:
            place = self.inputs.index(node)
            pixels = found.dtype == torch.uint8
            indices = not found.is_floating_point() and not pixels
            return Input(tuple(found.shape[1:]), register=input_register(place), indices=indices, pixels=pixels)
        args: Any = fx.map_arg(node.args, lambda n: self.values[n])
        kwargs: Any = fx.map_arg(node.kwargs, lambda n: self.values[n])
        if not any(isinstance(a, Value) for a in _flat((args, kwargs))):
            return found  # depends on nothing but parameters
        if not _holds_tensor(found):
            return found  # shapes and the like
        build = Builder(self.traced.places[node])
        try:
            rule = self._rule(node, build)
            try:
                value = rule(build, *args, **kwargs)
            except (RuntimeError, TypeError, IndexError) as error:
                raise ConversionError(f"{build.place}: its rule does not take what it is given: {error}") from error
            self._check(build, value, found)
        except ConversionError as error:
            # Gradient estimators compute much that cancels out: only what is needed must be convertible.
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != BATCH:
                raise
            cause = refused([a for a in _flat((args, kwargs)) if isinstance(a, Value)])
            return Refused(tuple(found.shape[1:]), error=error if cause is None else cause.error)
        if self._works_in_place(node):
            self._overwrite(node, value, build)
        return value

    @staticmethod
    def _check_indices(outputs: list[Value]) -> None:
        for value in live_values(outputs):
            for operand in value.inputs:
                if isinstance(operand, Input) and operand.indices and not _is_embedding(value):
                    raise ConversionError(
                        f"{value.source or 'the network'}: an input of integers can be converted for embeddings only; "
                        "give a float example, and convert before the network"
                    )

    def _overwrite(self, node: fx.Node, value: Value, build: Builder) -> None:
        """Let whoever reads the operand of a node that works in place, or another name of it, read the result."""
        changed = self.results[node.all_input_nodes[0]]
        for other in self.values:
            tensor = self.results[other]
            if (
                not isinstance(tensor, Tensor)
                or tensor.untyped_storage().data_ptr() != changed.untyped_storage().data_ptr()
            ):
                continue
            same = tensor.shape == changed.shape and tensor.stride() == changed.stride()
            if same and tensor.data_ptr() == changed.data_ptr():
                self.values[other] = value
            elif any(user not in self.values and user is not node for user in other.users):
                build.fail(
                    f"works in place on a part of {self.traced.places[other]}, which is read later; copy it first"
                )

    def _works_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_")
        name = getattr(node.target, "__name__", "")
        in_place = name in ("iadd", "isub", "imul", "itruediv") or name.endswith("_")
        return in_place or node.kwargs.get("inplace") is True

    def _rule(self, node: fx.Node, build: Builder) -> Rule:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            of_module = rule_of_module(module)
            if of_module is not None:
                return functools.partial(_call, of_module, module)
            if isinstance(module, Quantizer):
                return lambda build, x: build.quantize(x, module, f"{build.place} levels")
            if (why := why_no_rule(module)) != "":
                build.fail(
                    f"{type(module).__name__} cannot be converted: {why}; give it a rule of its own with "
                    "bnn.converter.register_rule"
                )
            build.fail(
                f"{type(module).__name__} cannot be converted. Supported are {', '.join(supported_modules())}; replace "
                "the module, give it a rule with bnn.converter.register_rule, or convert the part of the network "
                "before it"
            )
        rule = rule_of_function(getattr(node.target, "rule_for", node.target))
        if rule is None:
            name = getattr(node.target, "__name__", str(node.target))
            build.fail(
                f"{'method' if node.op == 'call_method' else 'function'} {name!r} cannot be converted; use a module or "
                "function that can, or put it into a module of its own and give that a rule with "
                "bnn.converter.register_rule"
            )
        return rule

    def _check(self, build: Builder, value: Any, found: Any) -> None:
        """Name the place that a value comes from, and hold its shape against what the network computes."""
        if isinstance(value, Unpacked):
            (levels,) = value.inputs
            if isinstance(levels, Levels) and not levels.owner:  # the rule's own, of which it gives the values
                levels.source = levels.source or levels_at(build.place, levels.planes, levels.table)
        for made, real in zip(_flat(value), _flat(found), strict=True):
            if not isinstance(made, Value):
                continue
            if made.shape != tuple(real.shape[1:]):
                shapes = f"{('N', *made.shape)}, the network computes {('N', *real.shape[1:])}"
                build.fail(f"its rule gives {shapes}: correct the rule")
            # Integers that are inputs have a refusal of their own.
            of_integers = any(self.results[node].dtype == torch.int64 for node in self.inputs)
            exact = of_integers or real.dtype in (torch.float32, torch.float64, torch.bool) or _holds_pixels(made)
            if not isinstance(made, Refused) and not exact:
                build.fail(
                    f"gives {str(real.dtype).removeprefix('torch.')}, but packed networks compute in float32 and round "
                    "nothing to fewer digits: leave the cast out in evaluation"
                )
            made.source = made.source or build.place
            for part in live_values([made]):
                part.owner = part.owner or build.place

    def _outputs(self, node: fx.Node) -> list[Value]:
        result: Any = fx.map_arg(node.args[0], lambda n: self.values[n])
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        for value in outputs:
            if not isinstance(value, Value):
                kind = (
                    "a dict" if isinstance(value, dict) else "a constant" if isinstance(value, Tensor) else repr(value)
                )
                raise ConversionError(
                    "a network that returns a tensor, or a tuple of tensors, that depends on its input can be "
                    f"converted; this one returns {kind}"
                )
        return outputs


def _call(rule: Rule, module: nn.Module, build: Builder, *args: Any, **kwargs: Any) -> Any:
    return rule(build, module, *args, **kwargs)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [part for item in value for part in _flat(item)]
    if isinstance(value, dict):
        return _flat(list(value.values()))
    if isinstance(value, slice):
        return _flat([value.start, value.stop, value.step])
    return [value]


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(part, Tensor) for part in _flat(value))
