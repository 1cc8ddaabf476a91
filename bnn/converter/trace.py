"""From a module to an fx graph in which every node has a name to report and a result to look at."""

import functools
import inspect
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnn.converter.errors import ConversionError
from bnn.converter.own_code import is_called_otherwise
from bnn.converter.registry import functions_of_python, proxy_among, rule_of_module, standing_for, why_no_rule
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer

# The batch that a network is tried with: one that no layer's width is likely to be confused with an unknown.
BATCH = 2


# fx exchanges methods of nn.Module for the time of a trace, so there is one at a time in a process.
_ONE_AT_A_TIME = threading.RLock()


class _InThread:
    """Is true in one thread."""

    def __init__(self, thread: int):
        self.thread = thread

    def __bool__(self) -> bool:
        return self.thread == threading.get_ident()


class _Tracer(fx.Tracer):
    """Modules with a rule are leaves, as are torch's own and quantizers; everything else is looked into.

    Other threads meet what fx exchanges too; what they call is no part of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    @property
    def place(self) -> str:
        """Path of the module whose forward is, or was when it failed, being followed."""
        return next(reversed(self.module_stack), "").split("@")[0]

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if isinstance(module, QuantLayer | Quantizer) or rule_of_module(module) is not None:
            return True
        exchanged = why_no_rule(module) != "" or is_called_otherwise(module)
        return not exchanged and super().is_leaf_module(module, qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call, or follow it."""
        if self.thread != threading.get_ident():
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Return the function to trace and its arguments; from here on it is known that this thread is tracing."""
        if hasattr(fx._symbolic_trace, "_is_fx_tracing_flag"):  # compiled networks of other threads ask it
            fx._symbolic_trace._is_fx_tracing_flag = _InThread(self.thread)  # type: ignore[assignment]
        return super().create_args_for_root(root_fn, is_module, concrete_args)

    def create_arg(self, a: Any) -> Any:
        """Return a node's argument; a parameter that is not the network's, but of a closure, is a constant."""
        if isinstance(a, nn.Parameter) and all(a is not p for p in self.root.parameters()):
            a = a.detach()
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute as it is: what is computed of parameters alone is a constant, whatever computes it."""
        return attr_val


class _ParameterTracer(_Tracer):
    """Traces parameters too, for code that slices or expands them by the input's shape."""

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy of a parameter."""
        if self.thread != threading.get_ident():
            return attr_val
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

    @property
    def needs_input_grad(self) -> Any:
        """False for every input."""
        return defaultdict(bool)


@contextmanager
def _without_context(functions: Sequence[Any]) -> Iterator[None]:
    """Let the forwards of autograd functions, where they are traced, mark values in a context that does not mind."""
    before = [(cls, vars(cls).get("forward")) for cls in functions]

    def follow(cls: Any) -> None:
        forward = cls.forward

        @functools.wraps(forward)
        def followed(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(ctx if proxy_among(args, kwargs) is None else _NoContext(), *args, **kwargs)

        cls.forward = staticmethod(followed)

    for cls in functions:
        follow(cls)
    try:
        yield
    finally:
        for cls, forward in before:
            if forward is None:
                del cls.forward
            else:
                cls.forward = forward


@contextmanager
def _functions_with_rules(model: nn.Module) -> Iterator[None]:
    """Let the functions of Python that have a rule, where they are traced, be one node of the graph.

    They are exchanged wherever they have a name: in modules, in classes and on the network's modules.
    """
    exchanged: list[tuple[Any, str, Any]] = []

    def exchange(owner: Any, names: dict[str, Any]) -> None:
        for name, value in list(names.items()):  # by type(): isinstance asks the value, which may warn or load
            function = value.__func__ if type(value) is staticmethod else value
            if type(function) is FunctionType and function in noted:
                exchanged.append((owner, name, value))
                new = noted[function]
                setattr(owner, name, staticmethod(new) if type(value) is staticmethod else new)
            elif type(function) is functools.partial and function.func in noted:
                exchanged.append((owner, name, value))
                setattr(owner, name, functools.partial(noted[function.func], *function.args, **function.keywords))

    noted = {function: _noted(function) for function in functions_of_python()}
    try:
        if noted:
            for module in [m for m in list(sys.modules.values()) if issubclass(type(m), ModuleType)]:
                exchange(module, vars(module))
                for cls in [c for c in list(vars(module).values()) if issubclass(type(c), type)]:
                    if cls.__module__ == module.__name__:
                        exchange(cls, dict(vars(cls)))
            for part in model.modules():
                exchange(part, vars(part))
        with _all_noted(noted):
            yield
    finally:
        for owner, name, value in reversed(exchanged):
            setattr(owner, name, value)


@contextmanager
def _all_noted(functions: Collection[Any]) -> Iterator[None]:
    """ConversionError if one of these functions runs with traced values all the same, so that its rule is not asked."""
    if not functions:
        yield
        return
    codes = {function.__code__: function.__name__ for function in functions}
    missed: list[str] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes and proxy_among(tuple(frame.f_locals.values()), {}) is not None:
            missed.append(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(watch)  # of this thread alone
    try:
        yield
    finally:
        sys.setprofile(before)
    if missed:
        raise ConversionError(
            f"the rule of {missed[0]!r} cannot be taken: the network has the function in a closure, a default argument "
            "or a container. Call it by its name in a module or a class, or as an attribute of a module"
        )


def _noted(function: Any) -> Any:
    """Return a function that is a node of the graph where it is traced, and itself elsewhere."""

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        proxy = proxy_among(args, kwargs)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", standing_for(function), args, kwargs)

    return noted


def _marking(error: BaseException) -> Any:
    """Return the autograd function in whose application an error arose because it marked a traced value, or None."""
    if "mark_" not in str(error):
        return None
    frame = error.__traceback__
    found = None
    while frame is not None:
        if frame.tb_frame.f_code is torch.autograd.Function.apply.__func__.__code__:  # type: ignore[attr-defined]
            found = frame.tb_frame.f_locals.get("cls")
        frame = frame.tb_next
    return found


def trace(model: nn.Module) -> Traced:
    """Return the graph of a network; ConversionError if its Python code cannot be followed."""
    errors: list[tuple[str, Exception]] = []
    with _ONE_AT_A_TIME, _functions_with_rules(model):
        for kind in (_Tracer, _ParameterTracer):
            tracers: list[_Tracer] = []
            try:
                return _traced(model, kind, tracers)
            except Exception as error:  # of the network's own code, which may be any
                errors.append((tracers[-1].place, error))
    place, first = errors[0]
    raise ConversionError(
        f"{place or type(model).__name__} cannot be traced (control flow that depends on data?): {first}. "
        "Put the part into a module of its own and give it a rule with bnn.converter.register_rule"
    ) from first


def _root_of_its_own(model: nn.Module) -> nn.Module:
    """Return the same network in another object, on which the tracer may leave constants."""
    root: nn.Module = object.__new__(type(model))
    root.__dict__.update(vars(model))
    return root


def _takes_any_number(model: nn.Module) -> bool:
    """Whether a network's forward takes `*inputs`, as wrappers do."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _traced(model: nn.Module, kind: type[_Tracer], tracers: list[_Tracer]) -> Traced:
    """Return the graph that a tracer makes. tracers: takes those that are tried, the last of which may fail."""
    functions: list[Any] = []  # that mark values in their context
    while True:
        tracer, root = kind(), _root_of_its_own(model)
        tracers.append(tracer)
        if tracer.is_leaf_module(model, "") or is_called_otherwise(model) or _takes_any_number(model):
            root = nn.Sequential(OrderedDict(model=model))
        try:
            with torch.no_grad(), _without_context(functions):
                graph = tracer.trace(root)
            return Traced(fx.GraphModule(root, graph), _places(graph))
        except RuntimeError as error:
            marking = _marking(error)
            if marking is None or marking in functions:
                raise
            functions.append(marking)


@dataclass(frozen=True)
class Found:
    """What every node computes for random inputs.

    as_made: when it ran. at_the_end: the tensors themselves, which later nodes may have changed in place.
    """

    as_made: dict[fx.Node, Any] = field(default_factory=dict)
    at_the_end: dict[fx.Node, Any] = field(default_factory=dict)


def results(traced: Traced, examples: Sequence[Tensor], works_in_place: Callable[[fx.Node], bool]) -> Found:
    """Return what every node computes for random inputs of the examples' shapes; ConversionError names a failure."""
    names = [str(node.target) for node in traced.nodes if node.op == "placeholder" and not node.args]
    known = [node for node in traced.nodes if node.op == "placeholder"]
    if not len(names) <= len(examples) <= len(known):
        wanted = ", ".join(map(repr, names))
        raise ConversionError(
            f"the network takes {len(names)} inputs ({wanted}), got {len(examples)} examples: give a tuple of them"
        )
    found = Found()
    changed = any(works_in_place(node) for node in traced.nodes)
    given = _random_inputs(examples)

    def watch(node: fx.Node, args: Any, result: Any) -> None:
        found.at_the_end[node] = result
        found.as_made[node] = _copied(result) if changed else result

    try:
        with torch.no_grad():
            traced.run(given, watch)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        at = next((node for node in traced.nodes if node not in found.as_made), traced.nodes[-1])
        shapes = ", ".join(f"({', '.join(map(str, ('N', *x.shape[1:])))})" for x in given)
        raise ConversionError(
            f"the model does not run on an input of shape {shapes}, at {traced.places[at]}: {error}"
        ) from None
    return found


def _copied(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    if type(result) in (tuple, list):
        return type(result)(map(_copied, result))
    return result


def _random_inputs(examples: Sequence[Tensor]) -> list[Tensor]:
    """Return random floats, in the second image larger ones, and none that is 0: who gives a rule may know of none.

    Integers are the example's own, of which it is known that there is a row for each. Pixels are 1 .. 255.
    """
    generator = torch.Generator().manual_seed(0)

    def floats(shape: Sequence[int]) -> Tensor:
        x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float32)
        x[1] *= 3
        return x

    def pixels(shape: Sequence[int]) -> Tensor:
        return torch.randint(1, 256, (BATCH, *shape), generator=generator, dtype=torch.uint8)

    return [
        floats(x.shape[1:])
        if x.is_floating_point()
        else pixels(x.shape[1:])
        if x.dtype == torch.uint8
        else torch.cat([x, x.flip(-1)]).expand(BATCH, *x.shape[1:])
        for x in examples
    ]


def check_trace(model: nn.Module, traced: Traced, found: Found, examples: Sequence[Tensor]) -> None:
    """ConversionError if the graph computes something else than the model: tracing does not see all that it does."""
    with torch.no_grad():
        real = model(*_random_inputs(examples))
    output = traced.nodes[-1]
    if not _alike(found.at_the_end[output], real):
        place = _first_difference(model, traced, found, examples)
        raise ConversionError(
            f"the traced graph computes something else than the model{place}. Look for += and the like on a value that "
            "is read elsewhere too, and write x = x + y; for autocast and other contexts within forward; or for random "
            "numbers"
        )


def _first_difference(model: nn.Module, traced: Traced, found: Found, examples: Sequence[Tensor]) -> str:
    """Return ", first at" the place where a module of the model gives something else than in the graph; else ""."""
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    differs: list[str] = []

    def watch(path: str, result: Any) -> None:
        nodes = calls[path]
        if nodes and not differs and not _alike(found.as_made[node := nodes.pop(0)], result):
            differs.append(traced.places[node])

    paths = {module: path for path, module in traced.module.named_modules() if path in calls}
    handles = [
        module.register_forward_hook(lambda module, args, result: watch(paths[module], result)) for module in paths
    ]
    try:
        with torch.no_grad():
            model(*_random_inputs(examples))
    finally:
        for handle in handles:
            handle.remove()
    return f", first at {differs[0]} or before it" if differs else ""


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return a is b or type(a) is type(b)
