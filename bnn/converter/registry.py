"""The rules that say what a module, function or method is made of; users add theirs with `register_rule`."""

from collections.abc import Callable
from typing import Any

from torch import nn

Rule = Callable[..., Any]

_MODULES: dict[type[nn.Module], Rule] = {}
_FUNCTIONS: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Decorate a function as the conversion rule of modules, functions or tensor methods.

    targets: classes of modules, classes derived from torch.autograd.Function, functions such as torch.cat, or names of
        tensor methods such as "flatten".
    The rule of a module is called as rule(build, module, *arguments), that of a function as rule(build, *arguments),
    with a bnn.converter.Value for every tensor that depends on the network's input, and all else as it is. It returns
    the Value (or a tuple of them) that stands for the result, made by the methods of `build`, a
    bnn.converter.Builder; `build.fail(reason)` refuses. A rule for a class counts for subclasses that do not override
    forward. A later rule for the same target replaces an earlier one.

        @bnn.converter.register_rule(LearnedScale)
        def learned_scale(build, module, x):
            return build.affine(x, scale=module.scale)
    """

    def add(rule: Rule) -> Rule:
        for target in targets:
            if isinstance(target, type) and issubclass(target, nn.Module):
                _MODULES[target] = rule
            elif callable(target) or isinstance(target, str):
                _FUNCTIONS[target] = rule
            else:
                raise TypeError(f"a rule is for a module class, a function or a method's name, got {target!r}")
        return rule

    return add


def rule_of_module(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of the nearest base class whose forward it has."""
    for base in type(module).__mro__:
        if base in _MODULES and type(module).forward is base.forward:
            return _MODULES[base]
    return None


def rule_of_function(target: Any) -> Rule | None:
    """Return the rule of a function or of a method's name."""
    return _FUNCTIONS.get(target)


def supported_modules() -> list[str]:
    """Return the names of the classes that have a rule, sorted."""
    return sorted(cls.__name__ for cls in _MODULES)
