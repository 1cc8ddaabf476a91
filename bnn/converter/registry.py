"""The rules that say what a module, function or method is made of; users add theirs with `register_rule`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn

from bnn.converter.own_code import code_of, foreign_code
from bnn.converter.recording import current

Rule = Callable[..., Any]
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


@dataclass(frozen=True)
class _OfClass:
    """The rule of a class, and the code that the class's forward ran when the rule was made."""

    rule: Rule
    code: dict[str, Any]


# What the recorder itself makes of writes in place.
_OF_RECORDER: set[Any] = set()
_MODULES: dict[type[nn.Module], _OfClass] = {}
_FUNCTIONS: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Decorate a function as the conversion rule of modules, functions or tensor methods.

    targets: classes of modules, classes derived from torch.autograd.Function, functions such as torch.cat or one's own,
        names of tensor methods such as "flatten", or operators such as torch.ops.aten.round.
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
                raise TypeError(
                    f"a rule is for a module class, a function, an operator or a method's name, got {target!r}"
                )
        return rule

    return add


def _announce(cls: Any) -> None:
    """Let an autograd function be one operation where a network is recorded.

    Its `apply` may have been given other names before; forward is what all of them call.
    """
    forward = cls.forward
    if getattr(forward, "rule_for", None) is cls:
        return
    takes_context = cls.setup_context is torch.autograd.Function.setup_context

    @functools.wraps(forward)
    def announced(*args: Any, **kwargs: Any) -> Any:
        recorder = current()
        context, given = (args[:1], args[1:]) if takes_context else ((), args)
        if recorder is None or cls not in _FUNCTIONS:
            return forward(*args, **kwargs)
        return recorder.whole(cls, functools.partial(forward, *context), given, kwargs)

    announced.rule_for = cls  # type: ignore[attr-defined]
    cls.forward = staticmethod(announced)


def rule_of_recorder(target: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Decorate a function as the rule of what the recorder makes of writes in place."""
    _OF_RECORDER.add(target)
    return register_rule(target)


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
    """Return the rule of a function, of a method's name, or of an ATen operator in any of its overloads."""
    if isinstance(target, torch._ops.OpOverload):
        return _FUNCTIONS.get(target) or _FUNCTIONS.get(target.overloadpacket)
    return _FUNCTIONS.get(target)


def functions_of_python() -> list[FunctionType]:
    """Return the functions with a rule that PyTorch knows nothing of."""
    return [target for target in list(_FUNCTIONS) if isinstance(target, FunctionType) and not _is_known(target)]


def functions_of_torch() -> set[Any]:
    """Return the functions of PyTorch, and names of methods, with a rule; without ATen operators."""
    return {
        target
        for target in list(_FUNCTIONS)
        if not isinstance(target, (type, *_OPERATORS)) and _is_known(target) and target not in _OF_RECORDER
    }


def _is_known(target: Any) -> bool:
    if target in _OF_RECORDER:
        return True
    module = getattr(target, "__module__", None)
    return not isinstance(target, FunctionType) or str(module).startswith("torch.")


def supported_modules() -> list[str]:
    """Return the names of the classes that have a rule, sorted."""
    return sorted(cls.__name__ for cls in _MODULES)
