"""Let functions of Python with a rule be one operation of the graph, by whatever name a network calls them.

PyTorch's dispatcher does not see them, so they are exchanged wherever they have a name for the time of a run: in
modules, in classes and on the network's modules. Autograd functions announce themselves once they have a rule.
"""

import functools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from bnn.converter.errors import ConversionError
from bnn.converter.recording import current
from bnn.converter.registry import functions_of_python

# What is exchanged is exchanged for the whole process.
_ONE_AT_A_TIME = threading.RLock()

_KINDS = (FunctionType, staticmethod, functools.partial)  # of what may be a function with a rule


@contextmanager
def functions_with_rules(network: nn.Module, sees: Callable[[Any], bool]) -> Iterator[None]:
    """Within it, functions of Python with a rule are recorded whole by the recorder of their thread.

    sees: whether a call with these arguments is recorded. ConversionError where a function was called by a name that
    could not be exchanged.
    """
    noted = {function: _noted(function) for function in functions_of_python()}
    if not noted:
        yield
        return
    exchanged: list[tuple[Any, str, Any]] = []

    def exchange(owner: Any, names: list[tuple[str, Any]]) -> None:
        for name, value in names:  # by type(): isinstance asks the value, which may warn or load
            kind = type(value)
            if kind not in _KINDS:  # most of hundreds of thousands of names
                continue
            function = value.__func__ if kind is staticmethod else value
            if type(function) is FunctionType and function in noted:
                exchanged.append((owner, name, value))
                new = noted[function]
                setattr(owner, name, staticmethod(new) if kind is staticmethod else new)
            elif type(function) is functools.partial and function.func in noted:
                exchanged.append((owner, name, value))
                setattr(owner, name, functools.partial(noted[function.func], *function.args, **function.keywords))

    with _ONE_AT_A_TIME:
        try:
            for module in [m for m in list(sys.modules.values()) if issubclass(type(m), ModuleType)]:
                names = list(vars(module).items())
                exchange(module, names)
                for _, cls in names:
                    if issubclass(type(cls), type) and cls.__module__ == module.__name__:
                        exchange(cls, list(vars(cls).items()))
            for part in network.modules():
                exchange(part, list(vars(part).items()))
            with _all_noted(noted, sees):
                yield
        finally:
            for owner, name, value in reversed(exchanged):
                setattr(owner, name, value)


@contextmanager
def _all_noted(functions: Collection[Any], sees: Callable[[Any], bool]) -> Iterator[None]:
    """ConversionError if one of these functions runs on recorded values all the same, so that its rule is not asked."""
    codes = {function.__code__: function.__name__ for function in functions}
    missed: list[str] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes and sees(tuple(frame.f_locals.values())):
            missed.append(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(watch)  # of this thread alone
    try:
        yield
    finally:
        sys.setprofile(before)
        if missed:
            raise ConversionError(
                f"the rule of {missed[0]!r} cannot be taken: the network has the function in a closure, a default "
                "argument or a container. Call it by its name in a module or a class, or as an attribute of a module"
            )


def _noted(function: Any) -> Any:
    """Return a function that is recorded whole by the recorder of its thread, and is itself where there is none."""

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        recorder = current()
        return function(*args, **kwargs) if recorder is None else recorder.whole(function, function, args, kwargs)

    return noted
