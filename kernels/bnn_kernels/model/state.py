"""What a network that computes step by step remembers from one step to the next: caches, counters, hidden states."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.runtime.workspace import Workspace
from bnn_kernels.steps.base import check_shape, need

# Larger whole numbers are not exact as float32.
LARGEST_COUNT = 1 << 24


class StateSpec(NamedTuple):
    """One array of a state, float32 (N, *shape), which a plan reads as an input register after those of its inputs.

    initial: what all its numbers are at the start. add: what is added to them after each step, of a counter. output:
    the register that holds the array after a step; "" for counters and for arrays that a step changes in place.
    """

    shape: tuple[int, ...]
    initial: float = 0.0
    add: float = 0.0
    output: str = ""

    def header(self) -> dict[str, Any]:
        """Return what a file holds of it, as JSON."""
        return {"shape": list(self.shape), "initial": self.initial, "add": self.add, "output": self.output}

    @classmethod
    def read(cls, found: Any) -> "StateSpec":
        """Return what a file holds; TypeError or KeyError if that is no state."""
        if not isinstance(found, dict) or found.keys() != {"shape", "initial", "add", "output"}:
            raise TypeError(f"expected a state, got {found!r:.200}")
        return cls(tuple(found["shape"]), found["initial"], found["add"], found["output"])


def checked_states(states: Sequence[StateSpec] | None) -> list[StateSpec]:
    """Return the states of a plan; PlanError if one is malformed."""
    found = []
    for state in states or ():
        need(isinstance(state, StateSpec), f"states must be StateSpecs, got {state!r:.200}")
        need(isinstance(state.output, str), f"the output of a state must be a register, got {state.output!r:.200}")
        for name in ("initial", "add"):
            value = getattr(state, name)
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            need(numeric and abs(value) <= LARGEST_COUNT, f"{name!r} of a state must be a number, got {value!r:.50}")
        need(float(state.add).is_integer(), f"a counter is counted up by whole numbers, not {state.add!r:.50}")
        need(not (state.add and state.output), "a state is counted up or written by a step, not both")
        found.append(StateSpec(check_shape(state.shape, "state"), float(state.initial), float(state.add), state.output))
    return found


def steps_until(limit: int, state: StateSpec) -> int | None:
    """Return how many steps a counter stays below a limit; None if it always does."""
    return None if state.add <= 0 else max(0, math.ceil((limit - state.initial) / state.add))


class State:
    """The memory of `batch` sequences between steps: `PackedModel.start` makes it, `PackedModel.step` changes it.

    length: how many steps were taken. Not for two threads at a time.
    """

    def __init__(self, specs: Sequence[StateSpec], registers: dict[str, np.ndarray], owner: object):
        self._specs = list(specs)
        self.registers = registers
        self.owner = owner
        self.length = 0
        # Steps are recorded on this very memory, so the recording is the state's own.
        self.workspace = Workspace()
        self.reset()

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(next(iter(self.registers.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(x.nbytes for x in self.registers.values())

    def reset(self) -> None:
        """Go back to the start, in the same memory."""
        self.length = 0
        for spec, x in zip(self._specs, self.registers.values(), strict=True):
            x.fill(spec.initial)

    def advance(self, made: dict[str, Any]) -> None:
        """Take what a step has made of it."""
        own = list(self.registers.values())
        written = []
        for spec, x in zip(self._specs, own, strict=True):
            if spec.output:
                y = made[spec.output]
                # One state may become another, which is about to be written.
                written.append((x, y.copy() if any(np.may_share_memory(y, other) for other in own) else y))
            elif spec.add:
                x += np.float32(spec.add)
        for x, y in written:
            np.copyto(x, y)
        self.length += 1

    def copy(self) -> "State":
        """Return a state of its own that is where this one is."""
        other = State(self._specs, {name: x.copy() for name, x in self.registers.items()}, self.owner)
        for name, x in self.registers.items():
            np.copyto(other.registers[name], x)
        other.length = self.length
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a state belongs to a loaded model and cannot be pickled; state.copy() copies it")

    def __repr__(self) -> str:
        return f"State(batch={self.batch}, length={self.length}, {self.nbytes:,} bytes)"


def new_state(
    specs: Sequence[StateSpec], registers: Sequence[str], shapes: Sequence[Any], batch: int, owner: object
) -> State:
    """Return the state of `batch` sequences at the start. shapes: of the registers, (C, H, W) or (K,)."""
    sides = [(*shape[1:], shape[0]) if len(shape) == 3 else shape for shape in shapes]
    arrays = {name: np.empty((batch, *side), np.float32) for name, side in zip(registers, sides, strict=True)}
    return State(specs, arrays, owner)
