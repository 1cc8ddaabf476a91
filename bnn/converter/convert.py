"""bnn.convert: a trained network becomes a packed model."""

import copy
import platform
from importlib.metadata import version

import bnn_kernels as bk
import torch
from torch import Tensor, nn

from bnn.converter.chain import trace_chain
from bnn.converter.errors import ConversionError
from bnn.converter.lowering import Lowering


def _versions() -> dict[str, str]:
    names = ("bitplanes", "torch", "numpy", "numba")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def convert(model: nn.Module, example_input: Tensor) -> bk.PackedModel:
    """Convert a trained network into bits.

    model: in evaluation mode; a sequence of the supported layers (nested Sequentials and plain forward functions
        included). It is not changed.
    example_input: float (N, C, H, W) or (N, K), of which only the shape counts.

    Returns a PackedModel that answers like `model(x)` in evaluation: exactly where integers are fed in, within float
    rounding elsewhere; `bnn.check_parity` shows it layer by layer. Raises ConversionError, with the module's dotted
    path, on what it cannot convert.
    """
    if model.training:
        raise ConversionError(
            "the model is in train mode, where batch norm and dropout depend on the batch: call model.eval() first"
        )
    for path, module in model.named_modules():
        if module.training:
            raise ConversionError(f"{path} is in train mode though the model is not: call model.eval() first")
    if not isinstance(example_input, Tensor) or not example_input.is_floating_point():
        raise TypeError(
            f"example_input must be a float tensor, got {getattr(example_input, 'dtype', type(example_input))}"
        )
    if example_input.ndim not in (2, 4) or 0 in example_input.shape:
        raise ConversionError(
            f"example_input must have shape (N, C, H, W) or (N, K) with N >= 1, got {tuple(example_input.shape)}"
        )
    bad = [name for name, p in model.state_dict().items() if p.is_floating_point() and not p.isfinite().all()]
    if bad:
        raise ConversionError(
            f"{bad[0]} holds NaN or infinite values: the training diverged, there is nothing to convert"
        )
    # Thresholds are those of the float32 network on a CPU, where the packed model runs.
    twin = copy.deepcopy(model).to("cpu", torch.float32)
    example = example_input[:1].detach().to("cpu", torch.float32)
    with torch.no_grad():
        links = trace_chain(twin, example)
        steps = Lowering(links, tuple(example.shape[1:])).run()
    return bk.PackedModel(example.shape[1:], steps, {"model": type(model).__name__}, _versions())
