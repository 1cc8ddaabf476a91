"""Rules of comparisons with numbers: signs as many networks write them, such as torch.where(x >= 0, 1.0, -1.0)."""

from dataclasses import replace
from typing import Any

import torch

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Comparison, Value
from bnn.converter.registry import register_rule

# Whether the threshold itself counts as below, and the values below and above.
_COMPARISONS = {"gt": (True, 0.0, 1.0), "ge": (False, 0.0, 1.0), "lt": (False, 1.0, 0.0), "le": (True, 1.0, 0.0)}
_MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}


def _number(build: Builder, constant: Any) -> float:
    """Return the one number that a constant holds everywhere."""
    tensor = torch.as_tensor(constant)
    if not tensor.numel() or not bool((tensor == tensor.reshape(-1)[0]).all()):
        build.fail("a comparison with other constants than one number cannot be converted")
    return float(tensor.reshape(-1)[0])


def _register(name: str) -> None:
    def compare(build: Builder, a: Any, b: Any) -> Value:
        if isinstance(a, Value) and isinstance(b, Value):
            build.fail("a comparison of two values cannot be converted")
        x, constant, kind = (a, b, name) if isinstance(a, Value) else (b, a, _MIRRORED[name])
        strict, low, high = _COMPARISONS[kind]
        return build.compare(Comparison(x, _number(build, constant), strict, low, high))

    compare.__doc__ = f"1 where {name} holds, else 0."
    register_rule(getattr(torch.ops.aten, name))(compare)


for _name in _COMPARISONS:
    _register(_name)


@register_rule(torch.ops.aten.where)
def where(build: Builder, condition: Any, yes: Any, no: Any) -> Value:
    """One of two numbers, as a comparison says."""
    comparison = condition.comparison if isinstance(condition, Value) else None
    if comparison is None or isinstance(yes, Value) or isinstance(no, Value):
        build.fail("where can be converted for a comparison with a number and two numbers to choose from")
    if {comparison.low, comparison.high} != {0.0, 1.0}:
        build.fail("where needs a comparison as its condition")
    high, low = (_number(build, side) for side in ((yes, no) if comparison.high else (no, yes)))
    return build.compare(replace(comparison, low=low, high=high))
