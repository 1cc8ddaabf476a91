"""An ONNX graph as a module: each operator is a layer of PyTorch or an `Operation`, in the order of the file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn


class Operation(nn.Module):
    """A function of tensors, some of which are constants.

    function: of all tensors, then of the options by name. constants: the tensors that are given, None where one comes
    from the network.
    """

    def __init__(self, function: Callable[..., Any], constants: Sequence[Tensor | None] = (None,), **options: Any):
        super().__init__()
        self.function, self.options = function, options
        self._given = [constant is not None for constant in constants]
        for i, constant in enumerate(constants):
            if constant is not None:
                self.register_buffer(f"constant{i}", constant)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__name__", self.function))

    def forward(self, *xs: Tensor) -> Any:
        """Return the function's result."""
        rest = iter(xs)
        given = [getattr(self, f"constant{i}") if known else next(rest) for i, known in enumerate(self._given)]
        return self.function(*given, **self.options)


def network(
    layers: Mapping[str, nn.Module], reads: Mapping[str, Sequence[str]], inputs: Sequence[str], outputs: Sequence[str]
) -> fx.GraphModule:
    """Return the module that runs layers in order, as plain code (`print(network.code)`).

    reads: what each layer reads, by the names of layers and inputs. outputs: one is returned as it is, several in a
    tuple.
    """
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in inputs}
    for name in layers:
        nodes[name] = graph.create_node("call_module", name, tuple(nodes[read] for read in reads[name]), name=name)
    results = tuple(nodes[name] for name in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(dict(layers), graph, class_name="OnnxNetwork")
