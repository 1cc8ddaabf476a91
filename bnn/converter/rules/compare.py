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
            a, b = build.add(a, build.affine(b, scale=-1.0)), 0.0  # of the same sign, in floats too
        x, constant, kind = (a, b, name) if isinstance(a, Value) else (b, a, _MIRRORED[name])
        strict, low, high = _COMPARISONS[kind]
        return build.compare(Comparison(x, _number(build, constant), strict, low, high))

    compare.__doc__ = f"1 where {name} holds, else 0."
    register_rule(getattr(torch.ops.aten, name))(compare)


for _name in _COMPARISONS:
    _register(_name)


def _where(build: Builder, mask: Value, x: Any) -> Value:
    """Return x where a mask of 0 and 1 is 1, else 0."""
    if isinstance(x, Value):
        return build.multiply(mask, x)
    x = torch.as_tensor(x)
    if not bool(x.isfinite().all()):
        build.fail("where can be converted with finite numbers alone")
    return build.affine(mask, scale=build.aligned(mask, x))


@register_rule(torch.ops.aten.where)
def where(build: Builder, condition: Any, yes: Any, no: Any) -> Value:
    """One of two numbers or values, as a comparison says."""
    comparison = condition.comparison if isinstance(condition, Value) else None
    if comparison is None or {comparison.low, comparison.high} != {0.0, 1.0}:
        build.fail("where needs a comparison as its condition")
    if isinstance(yes, Value) or isinstance(no, Value):
        no_condition = build.affine(condition, scale=-1.0, shift=1.0)
        return build.add(_where(build, condition, yes), _where(build, no_condition, no))
    high, low = (_number(build, side) for side in ((yes, no) if comparison.high else (no, yes)))
    return build.compare(replace(comparison, low=low, high=high))
