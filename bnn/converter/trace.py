"""From a module to an fx graph in which every node has a name to report and a result to look at."""

import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnn.converter.errors import ConversionError
from bnn.converter.registry import rule_of_function, rule_of_module
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer

# The batch that a network is tried with: one that no layer's width is likely to be confused with an unknown.
BATCH = 2


class _Tracer(fx.Tracer):
    """Modules with a rule are leaves, as are torch's own and quantizers; everything else is looked into."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        known = isinstance(module, QuantLayer | Quantizer) or rule_of_module(module) is not None
        return known or super().is_leaf_module(module, qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute as it is: what is computed of parameters alone is a constant, whatever computes it."""
        return attr_val


class _ParameterTracer(_Tracer):
    """Traces parameters too, for code that slices or expands them by the input's shape."""

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy of a parameter."""
        return fx.Tracer.getattr(self, attr, attr_val, parameter_proxy_cache)


@dataclass(frozen=True)
class Traced:
    """A traced network. places: the name of each node in reports, a module's dotted path where it is one."""

    module: fx.GraphModule
    places: dict[fx.Node, str]

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.module.graph.nodes)

    def run(self, inputs: Sequence[Tensor], watch: Any) -> Any:
        """Run the network; `watch(node, arguments, result)` sees every node. Returns the network's output."""
        return _Watched(self.module, watch).run(*inputs)


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watch: Any):
        super().__init__(module)
        self.extra_traceback = False
        self.watch = watch

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        args, _ = self.fetch_args_kwargs_from_env(node)
        self.watch(node, args, result)
        return result


def _owner(node: fx.Node) -> str:
    """Return the path of the module whose forward calls this node."""
    stack = list((node.meta.get("nn_module_stack") or {}).keys())
    return stack[-1].split("@")[0] if stack else ""


def _places(graph: fx.Graph) -> dict[fx.Node, str]:
    calls: dict[str, int] = {}
    places = {}
    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
            calls[path] = calls.get(path, 0) + 1
            places[node] = path if calls[path] == 1 else f"{path}#{calls[path]}"
        else:
            owner = _owner(node)
            places[node] = f"{owner}.{node.name}" if owner else node.name
    return places


class _NoContext:
    """Stands for the context of an autograd function, of which only the backward pass needs anything."""

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep nothing."""

    mark_non_differentiable = mark_dirty = save_for_forward = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:
        """Keep nothing."""


@functools.cache
def _applied(cls: Any) -> Any:
    """Return a function that applies an autograd function and has its name; its attribute `rule_for` is the class."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return cls.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = cls.__name__
    apply.rule_for = cls  # type: ignore[attr-defined]
    return apply


@contextmanager
def _autograd_functions() -> Iterator[None]:
    """Let autograd functions be traced: as one function if there is a rule for it, else by what their forward does."""
    base: Any = torch.autograd.Function
    own = vars(base)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        proxies = [a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)]
        if not proxies:
            return own.__get__(None, cls)(*args, **kwargs)
        if rule_of_function(cls) is not None:
            return proxies[0].tracer.create_proxy("call_function", _applied(cls), args, kwargs)
        if cls.setup_context is not torch.autograd.Function.setup_context:  # forward takes no context then
            return cls.forward(*args, **kwargs)
        return cls.forward(_NoContext(), *args, **kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = own


def trace(model: nn.Module) -> Traced:
    """Return the graph of a network; ConversionError if its Python code cannot be followed."""
    tracers = [_Tracer(), _ParameterTracer()]
    if tracers[0].is_leaf_module(model, ""):
        model = nn.Sequential(OrderedDict(model=model))
    before = set(vars(model))
    errors: list[Exception] = []
    for tracer in tracers:
        try:
            with torch.no_grad(), _autograd_functions():
                traced = fx.GraphModule(model, graph := tracer.trace(model))
            return Traced(traced, _places(graph))
        except (fx.proxy.TraceError, TypeError, AttributeError, RuntimeError) as error:
            errors.append(error)
        finally:
            for name in set(vars(model)) - before:  # constants that the tracer leaves there
                delattr(model, name)
    raise ConversionError(
        f"{type(model).__name__} cannot be traced (control flow that depends on data?): {errors[0]}. "
        "Put the part into a module of its own and give it a rule with bnn.converter.register_rule"
    ) from errors[0]


def results(traced: Traced, examples: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """Return what every node computes for random inputs of the examples' shapes; ConversionError names a failure."""
    names = [str(node.target) for node in traced.nodes if node.op == "placeholder" and not node.args]
    known = [node for node in traced.nodes if node.op == "placeholder"]
    if not len(names) <= len(examples) <= len(known):
        wanted = ", ".join(map(repr, names))
        raise ConversionError(
            f"the network takes {len(names)} inputs ({wanted}), got {len(examples)} examples: give a tuple of them"
        )
    found: dict[fx.Node, Any] = {}
    given = _random_inputs(examples)
    try:
        with torch.no_grad():
            traced.run(given, lambda node, args, result: found.__setitem__(node, result))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        at = next((node for node in traced.nodes if node not in found), traced.nodes[-1])
        shapes = ", ".join(f"({', '.join(map(str, ('N', *x.shape[1:])))})" for x in given)
        raise ConversionError(
            f"the model does not run on an input of shape {shapes}, at {traced.places[at]}: {error}"
        ) from None
    return found


def _random_inputs(examples: Sequence[Tensor]) -> list[Tensor]:
    """Return random floats; integers are the example's own, of which it is known that there is a row for each."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(BATCH, *x.shape[1:], generator=generator)
        if x.is_floating_point()
        else torch.cat([x, x.flip(-1)]).expand(BATCH, *x.shape[1:])
        for x in examples
    ]


def check_trace(model: nn.Module, traced: Traced, examples: Sequence[Tensor]) -> None:
    """ConversionError if the graph computes something else than the model: tracing does not see aliases of a value."""
    with torch.no_grad():
        found = traced.run(_random_inputs(examples), lambda node, args, result: None)
        real = model(*_random_inputs(examples))
    if not _alike(found, real):
        raise ConversionError(
            "the traced graph computes something else than the model. Look for += and the like on a value that is read "
            "elsewhere too, and write x = x + y; or for random numbers"
        )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return a is b or type(a) is type(b)
