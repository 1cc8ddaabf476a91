"""Programs of torch.export as modules, with the paths of the modules that they were exported from."""

import sys
import warnings
from typing import TYPE_CHECKING, Any, Union

from torch import nn

from bnn.converter.errors import ConversionError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Model = Union[nn.Module, "ExportedProgram"]


def as_module(model: Model) -> nn.Module:
    """Return an exported program as a module in evaluation mode, a module as it is.

    ConversionError if it was exported for one number of images alone.
    """
    if isinstance(model, nn.Module):
        return model
    exported = sys.modules.get("torch.export")  # whoever has a program has imported it
    if exported is None or not isinstance(model, exported.ExportedProgram):
        raise TypeError(f"a model must be an nn.Module or an ExportedProgram, got {type(model).__name__}")
    inputs = set(model.graph_signature.user_inputs)
    for node in model.graph.nodes:
        shape: Any = getattr(node.meta.get("val"), "shape", ())
        if node.op == "placeholder" and node.name in inputs and len(shape) and isinstance(shape[0], int):
            raise ConversionError(
                f"the program was exported for batches of {shape[0]} alone: export it with "
                "dynamic_shapes=({0: torch.export.Dim.AUTO},)"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its own code
        module: nn.Module = exported.unflatten(model)
    for part in module.modules():
        part.training = False  # whether batch norm and dropout train is an argument of each operation
    return module
