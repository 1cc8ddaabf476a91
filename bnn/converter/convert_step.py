"""bnn.convert_step: a network that computes step by step, with a state, becomes a packed model that does so too."""

from typing import Any, Protocol

import bnn_kernels as bk
import torch
from bnn_kernels.model.program import input_register
from bnn_kernels.model.state import StateSpec
from bnn_kernels.steps.base import STEPS
from torch import Tensor, nn

from bnn.converter.capture.record import leaves, mapped
from bnn.converter.convert import check_examples, check_model, dtypes_of, own_copy, packed_steps, versions
from bnn.converter.errors import ConversionError


class Stepping(Protocol):
    """What a module offers that computes step by step. A state: tensors (N, ...), in tuples, lists or dicts."""

    def start(self, batch: int) -> Any:
        """Return the state before the first step, the same for each of `batch` sequences."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the output for the next part of each sequence, and the state after it, of the same structure."""


class _Step:
    """One step as a function of tensors alone: the input, then those of the state.

    returned: which tensors of the new state are returned, as the step computes them.
    """

    def __init__(self, model: Any):
        self.model, self.structure = model, model.start(1)
        self.returned: list[int] = []

    def step(self, x: Tensor, *state: Tensor) -> tuple[Any, list[Tensor]]:
        """Return the output and all tensors of the new state."""
        waiting = iter(state)
        y, new = self.model.step(x, mapped(self.structure, lambda _: next(waiting)))
        return y, leaves(new)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the output, and those tensors of the new state that are asked for."""
        y, new = self.step(x, *state)
        return (y, *(new[i] for i in self.returned))


def convert_step(model: nn.Module, example_input: Tensor) -> bk.PackedModel:
    """Convert a network that computes step by step, such as a decoder with a cache of keys and values.

    model: in evaluation mode, with `start(batch) -> state` and `step(x, state) -> (y, state)`; a state is tensors
        (N, ...), perhaps in tuples, lists or dicts, of shapes that stay. Of floats a step may compute anything that
        `bnn.convert` takes. Integers, int64 (N, K), are counters, which grow by the same number with each step:
        positions, which embeddings and `bnn.layers.CachedAttention` read. Caches of the latter are changed in place.
        At the start all numbers of one tensor are the same.
    example_input: x of one step, of which only the shape counts; tokens are integers (N, 1).

    Returns a PackedModel with states: `state = packed.start(batch)`, `y = packed.step(x, state)`, and of one token a
    step `packed.generate(tokens, count)`. ConversionError on what cannot be converted.
    """
    if not all(callable(getattr(model, name, None)) for name in ("start", "step")):
        raise ConversionError(f"{type(model).__name__} has no start(batch) and step(x, state): use bnn.convert")
    check_model(model)
    (example,) = check_examples([example_input])
    own = own_copy(model).to("cpu", torch.float32)
    with torch.no_grad():
        step = _Step(own)
        states = _states(step, example)
    step.returned = [i for i, state in enumerate(states) if not state.add]
    vars(own)["forward"] = step.forward  # of a copy: what is recorded is a step
    steps, (output, *news), axes = packed_steps(own, [example, *leaves(step.structure)])
    if any(axes):
        raise ConversionError("the batch must be the first axis of what step returns: transpose it")
    states = _with_outputs(states, steps, dict(zip(step.returned, (name for name, _ in news), strict=True)))
    info = {"model": type(model).__name__}
    return bk.PackedModel([tuple(example.shape[1:])], steps, info, versions(), [output], dtypes_of([example]), states)


def _states(step: _Step, example: Tensor) -> list[StateSpec]:
    """Return what each tensor of a state is: its start, and what a counter grows by."""
    first, pair = leaves(step.structure), leaves(step.model.start(2))
    for count, tensors in ((1, first), (2, pair)):
        if not tensors or not all(isinstance(x, Tensor) and x.ndim > 1 and x.numel() for x in tensors):
            raise ConversionError(f"start({count}) must give tensors (N, ...), none of them empty, got {tensors!r:.99}")
    _, after = step.step(example, *(x.clone() for x in first))
    if not len(first) == len(pair) == len(after):
        raise ConversionError("start and step must give states of the same structure")
    for i, (x, y, two) in enumerate(zip(first, after, pair, strict=True)):
        if y.shape != x.shape or two.shape != (2, *x.shape[1:]) or y.dtype != x.dtype:
            raise ConversionError(
                f"tensor {i} of the state is {x.dtype} {tuple(x.shape)} at the start, {y.dtype} {tuple(y.shape)} after "
                f"a step and {tuple(two.shape)} for two sequences: a state keeps its shape, so a cache is as large as "
                "the context from the start"
            )
    found = []
    for i, (x, y, two) in enumerate(zip(first, after, pair, strict=True)):
        begin = float(x.flatten()[0])
        if not bool((x == begin).all()) or not bool((two == begin).all()):
            raise ConversionError(f"tensor {i} of the state begins with different numbers: let them all be the same")
        add = 0.0 if x.is_floating_point() else float((y - x).flatten()[0])
        found.append(StateSpec(tuple(x.shape[1:]), begin, add))
    _, later = step.step(example, *(x.clone() for x in after))
    for i, (state, x, y, z) in enumerate(zip(found, first, after, later, strict=True)):
        alike = bool((y - x == state.add).all()) and bool((z - y == state.add).all())
        if not x.is_floating_point() and (not alike or not state.add):
            raise ConversionError(f"tensor {i} of the state holds integers, which must grow alike with each step")
    return found


def _with_outputs(states: list[StateSpec], steps: list[bk.StepSpec], news: dict[int, str]) -> list[StateSpec]:
    """Return states with the registers that hold them after a step. news: of those that are no counters."""
    in_place = {spec.inputs[i] for spec in steps for i in STEPS[spec.op].in_place}
    found = []
    for i, state in enumerate(states):
        register, new = input_register(i + 1), news.get(i, "")
        if register in in_place and new != register:
            raise ConversionError(
                f"tensor {i} of the state is a cache of CachedAttention: the new state must hold what it returns"
            )
        if register in in_place and sum(spec.inputs.count(register) for spec in steps) > 1:
            raise ConversionError(f"tensor {i} of the state, a cache of CachedAttention, is read by something else too")
        found.append(state._replace(output="" if new == register else new))
    return found
