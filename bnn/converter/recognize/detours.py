"""Levels that a network looks up: the nearest of a table by argmin and indexing, with views that fold the batch.

Such operations have no rules. What they make of a whole tensor may still be a function of each of its numbers by
itself, which is found by running them: numbers that change leave the others' results as they are, wherever they lie.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bnn.converter.capture.record import Node, Output, mapped
from bnn.converter.graph.values import Value, refused
from bnn.converter.recognize.staircase import Function

# Operations between a value and its levels.
MOST_NODES = 32


def detour(node: Node, value_of: Callable[[Output], object]) -> tuple[Value, Function] | None:
    """Return the value of whose each number a refused operation's result is a function, and the function.

    value_of: what the result of an earlier operation became. None if the operation reads several convertible values, or
    one of another shape, or if a number of its result depends on several numbers of the value.
    """
    nodes, given = _between(node, value_of)
    (result,) = node.results
    if len(given) != 1:
        return None
    (start,) = given
    before, value = start.node.results[start.index], value_of(start)
    if not isinstance(value, Value) or before.shape != result.shape or not before.is_floating_point():
        return None

    def run(x: Tensor) -> Tensor:
        made: dict[Output, Tensor] = {start: x}
        for part in nodes:
            assert part.run is not None
            args, kwargs = mapped((part.args, part.kwargs), lambda a: made[a] if isinstance(a, Output) else a)
            found = part.run(*args, **kwargs)
            found = [found] if isinstance(found, Tensor) else [y for y in found if isinstance(y, Tensor)]
            made.update({Output(part, i): y for i, y in enumerate(found)})
        return made[Output(node, 0)]

    def function(x: Tensor) -> Tensor:
        """Return the results for float (n,), as many at once as the tensor has."""
        parts = []
        for part in x.split(before.numel()):
            filled = part.repeat(-(-before.numel() // len(part)))[: before.numel()]
            parts.append(run(filled.reshape(before.shape)).reshape(-1)[: len(part)])
        return torch.cat(parts)

    return (value, function) if _is_by_number(run, before) else None


def _between(node: Node, value_of: Callable[[Output], object]) -> tuple[list[Node], set[Output]]:
    """Return the refused operations that lead to a result, in order, and the convertible results that they read."""
    nodes, given, stack = {node}, set[Output](), [node]
    while stack and len(nodes) <= MOST_NODES:
        for operand in stack.pop().operands:
            value = value_of(operand)
            if operand.node.run is None or not isinstance(value, Value) or refused([value]) is None:
                given.add(operand)
            elif operand.node not in nodes:
                nodes.add(operand.node)
                stack.append(operand.node)
    return ([], set()) if stack else (sorted(nodes, key=lambda n: n.index), given)


def _is_by_number(run: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(like.shape, generator=generator).to(like.dtype) for _ in range(2))
    order = torch.randperm(x.numel(), generator=generator)
    stays = torch.rand(like.shape, generator=generator) < 0.5
    try:
        y = run(x)
        moved = run(x.reshape(-1)[order].reshape(x.shape))
        changed = run(torch.where(stays, x, 4 * other))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return torch.equal(y.reshape(-1)[order], moved.reshape(-1)) and torch.equal(y[stays], changed[stays])
