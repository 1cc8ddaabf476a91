"""Whether a module runs the code that the rule of its class was written for, or a subclass or someone else's.

A rule says what a class computes. It holds for a module only if all that its forward runs is the class's own: a
subclass may override forward itself or what forward calls (`_conv_forward`), and both can be exchanged on one object
or, by monkeypatching, on the class.
"""

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

# How a module gets to its forward, whatever its class.
_CALLING = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
_MISSING = object()


def _names(code: CodeType) -> Iterator[str]:
    """Return the names that code looks up, functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _codes(attribute: Any) -> Iterator[CodeType]:
    """Return the code of a method, a static or class method or a property."""
    parts = (attribute.fget, attribute.fset) if isinstance(attribute, property) else (attribute,)
    for part in parts:
        code = getattr(getattr(part, "__func__", part), "__code__", None)
        if code is not None:
            yield code


def code_of(cls: type[nn.Module]) -> dict[str, Any]:
    """Return the methods and properties that a class's forward runs, by name, as they are at this moment.

    Names that begin with _check are left out: such methods raise, or do nothing.
    """
    found: dict[str, Any] = {}
    names = ["forward"]
    while names:
        name = names.pop()
        attribute = inspect.getattr_static(cls, name, _MISSING)
        # What every module has (training, parameters) is no part of what one class computes.
        everyones = attribute is inspect.getattr_static(nn.Module, name, _MISSING)
        is_code = callable(attribute) or hasattr(type(attribute), "__get__")
        if name in found or name.startswith("_check") or everyones or not is_code:
            continue
        found[name] = attribute
        for definition in (vars(base)[name] for base in cls.__mro__ if name in vars(base)):
            run = [called for code in _codes(definition) for called in _names(code)]
            names += run
            if "super" not in run:
                break
    return found


def foreign_code(module: nn.Module, cls: type[nn.Module], own: dict[str, Any]) -> str:
    """Return the name of what a module runs instead of its class's own code, "" if there is nothing.

    cls: a class of the module. own: its `code_of` at the time that a rule was made for it.
    """
    instance = vars(module)
    for name, attribute in own.items():
        if name in instance or inspect.getattr_static(type(module), name, _MISSING) is not attribute:
            return name
    for name in _CALLING:
        # By the class that has it: others may exchange nn.Module's own for a time.
        if name in instance or _definer(type(module), name) is not _definer(cls, name):
            return name
    return ""


def _definer(cls: type, name: str) -> type | None:
    return next((base for base in cls.__mro__ if name in vars(base)), None)
