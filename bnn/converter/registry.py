"""The rules that say what a module, function or method is made of; users add theirs with `register_rule`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from bnn.converter.own_code import code_of, foreign_code

Rule = Callable[..., Any]


@dataclass(frozen=True)
class _OfClass:
    """The rule of a class, and the code that the class's forward ran when the rule was made."""

    rule: Rule
    code: dict[str, Any]


_MODULES: dict[type[nn.Module], _OfClass] = {}
_FUNCTIONS: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Decorate a function as the conversion rule of modules, functions or tensor methods.

    targets: classes of modules, classes derived from torch.autograd.Function, functions such as torch.cat or one's own,
        or names of tensor methods such as "flatten".
    The rule of a module is called as rule(build, module, *arguments), that of a function as rule(build, *arguments),
    with a bnn.converter.Value for every tensor that depends on the network's input, and all else as it is. It returns
    the Value (or a tuple of them) that stands for the result, made by the methods of `build`, a
    bnn.converter.Builder; `build.fail(reason)` refuses. A rule for a class counts for a module only if all that its
    forward runs is the class's own: not for subclasses that override forward or a method that forward calls, nor for
    objects of which one is exchanged. A later rule for the same target replaces an earlier one.

        @bnn.converter.register_rule(LearnedScale)
        def learned_scale(build, module, x):
            return build.affine(x, scale=module.scale)
    """

    def add(rule: Rule) -> Rule:
        for target in targets:
            if isinstance(target, type) and issubclass(target, nn.Module):
                _MODULES[target] = _OfClass(rule, code_of(target))
            elif isinstance(target, type) and issubclass(target, torch.autograd.Function):
                _FUNCTIONS[target] = rule
                _announce(target)
            elif callable(target) or isinstance(target, str):
                _FUNCTIONS[target] = rule
            else:
                raise TypeError(f"a rule is for a module class, a function or a method's name, got {target!r}")
        return rule

    return add


def _announce(cls: Any) -> None:
    """Let an autograd function's forward, when it is traced, be one node of the graph.

    Its `apply` may have been given other names before; forward is what all of them call.
    """
    forward = cls.forward
    if getattr(forward, "rule_for", None) is cls:
        return
    takes_context = cls.setup_context is torch.autograd.Function.setup_context

    @functools.wraps(forward)
    def announced(*args: Any, **kwargs: Any) -> Any:
        proxy = proxy_among(args, kwargs)
        if proxy is None or cls not in _FUNCTIONS:
            return forward(*args, **kwargs)
        given = args[1:] if takes_context else args
        return proxy.tracer.create_proxy("call_function", standing_for(cls), given, kwargs)

    announced.rule_for = cls  # type: ignore[attr-defined]
    cls.forward = staticmethod(announced)


def proxy_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Proxy | None:
    """Return the first argument that stands for a value of a network that is being traced."""
    found: list[fx.Proxy] = []
    fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
    return found[0] if found else None


@functools.cache
def standing_for(target: Any) -> Any:
    """Return a function that does what a target does and has its name; its attribute `rule_for` is the target."""
    function = getattr(target, "apply", target) if isinstance(target, type) else target

    def apply(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = target.__name__
    apply.rule_for = target  # type: ignore[attr-defined]
    return apply


def rule_of_module(module: nn.Module) -> Rule | None:
    """Return the rule of the nearest class of a module of whose own code its forward consists."""
    for base in type(module).__mro__:
        found = _MODULES.get(base)
        if found is not None and not foreign_code(module, base, found.code):
            return found.rule
    return None


def why_no_rule(module: nn.Module) -> str:
    """Return why the rule of a module's class does not count for it, "" if none of its classes has a rule."""
    for base in type(module).__mro__:
        found = _MODULES.get(base)
        if found is not None and (name := foreign_code(module, base, found.code)):
            return f"{name!r} of it is not {base.__name__}'s own, so the rule of {base.__name__} does not count"
    return ""


def rule_of_function(target: Any) -> Rule | None:
    """Return the rule of a function or of a method's name."""
    return _FUNCTIONS.get(target)


def functions_of_python() -> list[FunctionType]:
    """Return the functions with a rule that tracing would look into: those that know nothing of PyTorch's dispatch."""
    return [
        target
        for target in list(_FUNCTIONS)
        if isinstance(target, FunctionType) and not target.__module__.startswith("torch.")
    ]


def supported_modules() -> list[str]:
    """Return the names of the classes that have a rule, sorted."""
    return sorted(cls.__name__ for cls in _MODULES)
