"""Rules of comparisons, and of choices between numbers: signs as many networks write them.

A comparison is levels 0 and 1. What a network makes of them, such as torch.where(x >= 0, 1.0, -1.0), is found to be
levels too by `recognize.pointwise`.
"""

from typing import Any

import torch

from bnn.converter.graph.builder import Builder
from bnn.converter.graph.values import Value
from bnn.converter.recognize.staircase import Steps
from bnn.converter.registry import register_rule

# Whether the threshold itself counts as below, and whether the comparison holds above it.
_COMPARISONS = {"gt": (True, True), "ge": (False, True), "lt": (False, False), "le": (True, False)}
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
        strict, above = _COMPARISONS[kind]
        start = torch.tensor([_number(build, constant)])
        start = torch.nextafter(start, torch.tensor(torch.inf)) if strict else start
        y = build.quantize(x, Steps(1.0, 0.0, torch.arange(2), start))
        return y if above else build.affine(y, scale=-1.0, shift=1.0)

    compare.__doc__ = f"1 where {name} holds, else 0."
    register_rule(getattr(torch.ops.aten, name))(compare)


for _name in _COMPARISONS:
    _register(_name)


@register_rule(torch.ops.aten.where)
def where(build: Builder, condition: Any, yes: Any, no: Any) -> Value:
    """One of two numbers or values, as a condition of 0 and 1 says."""
    if not isinstance(condition, Value):
        return _by_mask(build, torch.as_tensor(condition).bool(), yes, no)
    sides = [torch.as_tensor(side) for side in (yes, no) if not isinstance(side, Value)]
    if not all(bool(side.isfinite().all()) for side in sides):
        build.fail("where can be converted with finite numbers alone")
    if len(sides) == 2:
        yes, no = sides
        scale, shift = build.aligned(condition, yes - no), build.aligned(condition, no + 0 * yes)
        return build.affine(condition, scale=scale, shift=shift)
    other = build.affine(condition, scale=-1.0, shift=1.0)
    return build.add(*(_chosen(build, *pair) for pair in ((condition, yes), (other, no))))


def _by_mask(build: Builder, mask: torch.Tensor, yes: Any, no: Any) -> Value:
    """Return a choice that is the same for every input."""
    found: Value | None = None
    constant: Any = None
    for side, kept in ((yes, mask), (no, ~mask)):
        if isinstance(side, Value):
            part = build.affine(side, scale=build.aligned(side, kept.float()))
            found = part if found is None else build.add(found, part)
        else:
            constant = torch.where(kept, torch.as_tensor(side, dtype=torch.float32), 0.0)
    assert found is not None, "a choice between constants has no rule"
    return found if constant is None else build.affine(found, shift=build.aligned(found, constant))


def _chosen(build: Builder, mask: Value, x: Any) -> Value:
    """Return x where a mask of 0 and 1 is 1, else 0."""
    if isinstance(x, Value):
        return build.multiply(mask, x)
    return build.affine(mask, scale=build.aligned(mask, torch.as_tensor(x)))
