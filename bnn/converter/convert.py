"""bnn.convert: a trained network becomes a packed model."""

import contextlib
import importlib
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import bnn_kernels as bk
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import bnn
from bnn.converter import rules as rules  # registers them
from bnn.converter.capture.exported import Model, as_module
from bnn.converter.capture.kept_planes import KeptPlanes
from bnn.converter.capture.record import capture, random_inputs
from bnn.converter.capture.sign_of_zero import sign_of_zero_is
from bnn.converter.errors import ConversionError
from bnn.converter.explain import Explanation, explanation
from bnn.converter.graph.values import Value
from bnn.converter.half_floats import FloatStorage, round_weights
from bnn.converter.lowering import Lowering
from bnn.converter.packing.emitter import Emitted, emit
from bnn.converter.verify import check_batches, check_planes, check_recording, check_values, with_numbers
from bnn.layers.base import shapes_only
from bnn.model_copy import copied
from bnn.quantizers.data_initialized import warn_of_uninitialized


def versions() -> dict[str, str]:
    """Return the versions of what converts, for the header of a file."""
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
        if x.ndim not in (2, 3, 4, 5) or 0 in x.shape:
            raise ConversionError(
                "example_input must have shape (N, C, D, H, W), (N, C, H, W), (N, C, L) or (N, K) with N >= 1, got "
                f"{tuple(x.shape)}"
            )
    return [as_input(x[:1]) for x in examples]


def as_input(x: Tensor) -> Tensor:
    """Return an input on the CPU, where a packed network has it: float32, uint8 pixels or int64 indices."""
    if x.dtype == torch.uint8:
        return x.detach().cpu()
    return x.detach().to("cpu", torch.float32 if x.is_floating_point() else torch.int64)


def convert(
    model: Model, example_input: Tensor | Sequence[Tensor], require_bits: bool = False, sign_of_zero: int = 0,
    float_storage: FloatStorage = "float32",
) -> bk.PackedModel:  # fmt: skip
    """Convert a trained network into bits.

    model: in evaluation mode. It is run on a few inputs, and the ATen operations that PyTorch runs are recorded, so any
        Python code is welcome; control flow that depends on data is not. It is not changed. Or an ExportedProgram of
        torch.export, exported in evaluation mode and with a dynamic batch.
    example_input: float (N, C, D, H, W), (N, C, H, W), (N, C, L) or (N, K), of which only the shape counts; a tuple
        for several inputs. Integers (N, T), int32 or int64, are for embeddings. With uint8 pixels the packed network
        takes uint8; its model normalizes them itself (`bnn.layers.PixelNormalize`, `bnn.quantizers.PixelLevels`).
    require_bits: refuse a network in which a layer whose weights and inputs take few values would run in floats, as
        its inputs are not recognized as levels (`bnn.converter.explain` lists all layers).
    sign_of_zero: what torch.sign makes of 0 in the packed network: 0, as in PyTorch, where signs that may meet a 0 are
        two planes of bits, or 1, so that they are one. `bnn.check_parity` then holds it against the model with that
        sign, and says how many signs were of 0.
    float_storage: "float16" or "bfloat16" rounds the weights of convolutions, linear layers and embeddings that stay
        floats to numbers of 16 bits, which a file then stores as such; kernels compute with them in float32.
        `bnn.check_parity` then holds the packed network against the model with these weights.

    Returns a PackedModel that answers like `model(x)` in evaluation: exactly where integers are fed in, within float
    rounding elsewhere; `bnn.check_parity` shows it layer by layer. Outputs in tuples within tuples, such as
    (y, (h, c)), come in one tuple. Raises ConversionError, with the dotted path of the module, on what it cannot
    convert; `bnn.converter.register_rule` teaches it a module of your own. Warns of quantizers that have never seen
    data (`bnn.calibrate`).
    """
    model = as_module(model)
    check_model(model)
    warn_of_uninitialized(model, f"{type(model).__name__} is converted")
    examples = check_examples(example_input)
    # Thresholds are those of the float32 network on a CPU, where the packed model runs.
    network = own_copy(model).to("cpu", torch.float32)
    round_weights(network, float_storage)
    with sign_of_zero_is(sign_of_zero):
        steps, ends, axes = packed_steps(network, examples, require_bits)
    shapes = [tuple(x.shape[1:]) for x in examples]
    info: dict[str, Any] = {"model": type(model).__name__}
    if sign_of_zero:
        info["sign_of_zero"] = sign_of_zero
    if float_storage != "float32":
        info["float_storage"] = float_storage
    return bk.PackedModel(shapes, steps, info, versions(), ends, dtypes_of(examples), batch_axes=axes)


def packed_steps(
    network: nn.Module, examples: Sequence[Tensor], require_bits: bool = False
) -> tuple[list[bk.StepSpec], list[tuple[str, tuple[int, ...]]], list[int]]:
    """Return the steps that compute a network, and (register, shape) and the batch's axis of each of its outputs.

    ConversionError, see `convert`.

    network: one's own copy, in evaluation mode, float32 on a CPU.
    """
    lowering, outputs = _lowered(network, examples)
    missed = explanation(outputs, lowering.lowered).missed if require_bits else ()
    if missed:
        raise ConversionError(f"{missed[0].place}: would run in floats, as {missed[0].reason}")
    steps, registers, _ = _emitted(outputs)
    ends = [(register, value.shape) for register, value in zip(registers, outputs, strict=True)]
    return steps, ends, lowering.batch_axes


def dtypes_of(examples: Sequence[Tensor]) -> list[str]:
    """Return the dtypes of the inputs of a packed network."""
    return ["uint8" if x.dtype == torch.uint8 else "float32" for x in examples]


def own_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model; what was made of an exported program is one's own already."""
    if type(model).__module__.startswith("torch.export."):
        return model
    try:
        return copied(model)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ConversionError(f"{type(model).__name__} cannot be copied by copy.deepcopy: {error}") from error


def explain(model: Model, example_input: Tensor | Sequence[Tensor], sign_of_zero: int = 0) -> Explanation:
    """Return which layers of a network become bits in `bnn.convert`, and why others stay floats; print it for a table.

    model, example_input, sign_of_zero: as for `bnn.convert`. ConversionError if the network cannot be converted at all.
    """
    model = as_module(model)
    check_model(model)
    network = own_copy(model).to("cpu", torch.float32)
    with sign_of_zero_is(sign_of_zero):
        lowering, outputs = _lowered(network, check_examples(example_input))
    return explanation(outputs, lowering.lowered)


def plan(network: nn.Module, examples: Sequence[Tensor]) -> Emitted:
    """Return the steps that compute a network, in evaluation mode, float32 on a CPU.

    It is not held against what the network computes: the shapes alone are sure to be the network's.
    """
    with torch.no_grad():
        return _emitted(_lowered(network, examples, checked=False)[1])


def _lowered(network: nn.Module, examples: Sequence[Tensor], checked: bool = True) -> tuple[Lowering, list[Value]]:
    """Return what became of a network's operations, and its outputs. checked: against what the network computes."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), KeptPlanes(network) as kept:
        with contextlib.nullcontext() if checked else shapes_only(network):
            captured = capture(network, random_inputs(examples))
        if checked:
            with kept.anew():
                check_planes(network, examples)
        lowering = Lowering(captured)
        outputs = lowering.outputs()
        if checked:
            with_numbers(captured, lowering.lowered, outputs)
            check_recording(network, captured)
            check_values(lowering.lowered, outputs)
            check_batches(network, examples, lowering.lowered, outputs, lowering.ends)
    return lowering, outputs


def _emitted(outputs: list[Value]) -> Emitted:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        emitted = emit(outputs)
    if not emitted.steps:
        raise ConversionError("nothing is left of the model: it has only layers that do nothing in evaluation")
    return emitted
