"""A plan as it runs: its steps built and checked against each other, and when each register is last read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import fit_bytes
from bnn_kernels.errors import PlanError
from bnn_kernels.model.state import StateSpec, checked_states, steps_until
from bnn_kernels.steps.base import STEPS, Spec, Step, check_shape, need
from bnn_kernels.steps.fields import StepSpec

INPUT = "x"
# What inputs may hold: floats (integers where they are rows of tables), or bytes such as pixels, levels 0 .. 255.
DTYPES = ("float32", "uint8")
OF_A_BYTE = (1, 2, 4, 8, 16, 32, 64, 128)


def input_register(index: int) -> str:
    """Return the register of an input: "x", "x1", "x2", ..."""
    return INPUT if index == 0 else f"{INPUT}{index}"


def as_spec_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a value has within a plan.

    A sequence (C, L) is a map of one row; of a volume (C, D, H, W) the slices lie below one another, (C, D * H, W).
    """
    if len(shape) == 4:
        return shape[0], shape[1] * shape[2], shape[3]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _input_spec(shape: tuple[int, ...], dtype: str) -> Spec:
    if dtype == "uint8":
        return Spec("bits", as_spec_shape(shape), False, OF_A_BYTE, as_bytes=True)
    return Spec("float", as_spec_shape(shape))


def _as_bytes(x: np.ndarray, which: str) -> np.ndarray:
    """Return numbers as uint8; ValueError unless they are whole and 0 .. 255."""
    if x.dtype == np.uint8:
        return x
    with np.errstate(invalid="ignore"):
        found = x.astype(np.uint8)
    if not np.array_equal(found, x):
        raise ValueError(
            f"{which} must be uint8, or hold whole numbers 0 .. 255: the network takes pixels as they are and "
            f"normalizes them itself; got {x.dtype} from {x.min():g} to {x.max():g}"
        )
    return found


def _checked_dtypes(dtypes: Sequence[str] | None, count: int) -> list[str]:
    found = ["float32"] * count if dtypes is None else list(dtypes)
    need(len(found) == count, f"there are {count} inputs and {len(found)} dtypes of them")
    for dtype in found:
        need(dtype in DTYPES, f"inputs are of {' or '.join(DTYPES)}, got {dtype!r:.50}")
    return found


class Placed(NamedTuple):
    """A built step, the registers that it reads and writes, those that nobody reads after it, and what it reads."""

    step: Step
    inputs: list[str]
    outputs: list[str]
    dead: list[str]
    given: list[Spec]


def _reads_levels(placed: Placed, register: str) -> bool:
    """Whether all that a step reads of a register are levels."""
    return register not in placed.inputs[placed.step.level_inputs :]


class Program:
    """The steps of a plan, in order.

    input_shapes: without the batch. dtypes: of the inputs, see `DTYPES`; float32 if not given. outputs: (register,
    shape), or None for what the last step writes first. batch_axes: which axis of each output is the batch's, None for
    the first. states: what is kept from one call to the next, in the registers after those of the inputs. specs: of
    every register. most_steps: how often a network that computes step by step can be called before a counter is beyond
    a table or a cache; None if there is no end. PlanError if a step is malformed or the steps do not fit together.
    """

    def __init__(
        self,
        input_shapes: Sequence[tuple[int, ...]],
        steps: Sequence[StepSpec],
        outputs: Sequence[tuple[str, Sequence[int]]] | None,
        dtypes: Sequence[str] | None = None,
        states: Sequence[StateSpec] | None = None,
        batch_axes: Sequence[int] | None = None,
    ):
        need(len(steps) > 0, "a plan needs at least one step")
        self.input_shapes = list(input_shapes)
        self.dtypes = _checked_dtypes(dtypes, len(self.input_shapes))
        kinds = enumerate(zip(self.input_shapes, self.dtypes, strict=True))
        self.specs = {input_register(i): _input_spec(shape, dtype) for i, (shape, dtype) in kinds}
        self.states = checked_states(states)
        count = len(self.input_shapes)
        self.state_registers = [input_register(count + i) for i in range(len(self.states))]
        for register, state in zip(self.state_registers, self.states, strict=True):
            self.specs[register] = _input_spec(state.shape, "float32")
        self.placed: list[Placed] = []
        for index, spec in enumerate(steps):
            self._add(index, spec)
        self.outputs = self._check_outputs(steps[-1].output, outputs)
        self.batch_axes = self._check_axes(batch_axes)
        self._check_states()
        self.most_steps = self._most_steps()
        kept = {register for register, _ in self.outputs} | {state.output for state in self.states}
        for placed in reversed(self.placed):
            for register in {*placed.inputs, *placed.outputs} - kept:
                placed.dead.append(register)
                kept.add(register)
        self._choose_forms()
        self._has_bytes = "uint8" in self.dtypes
        # An input may be of integers if they are rows of tables.
        self.takes_integers = [
            dtype == "uint8" or all(spec.op == "embedding" for spec in steps if input_register(i) in spec.inputs)
            for i, dtype in enumerate(self.dtypes)
        ]

    def _add(self, index: int, spec: StepSpec) -> None:
        where = f"step {index} ({spec.op}{', from ' + spec.source if spec.source else ''})"
        if spec.op not in STEPS:
            raise PlanError(f"{where}: unknown op; this version knows {', '.join(sorted(STEPS))}")
        missing = [name for name in spec.inputs if name not in self.specs]
        if missing:
            raise PlanError(f"{where}: reads {missing[0]!r}, which no earlier step writes")
        try:
            built = STEPS[spec.op](spec.attrs, spec.tensors)
            need(len(spec.inputs) == built.arity, f"takes {built.arity} inputs, got {len(spec.inputs)}")
            inputs = [self.specs[name] for name in spec.inputs]
            made = built.infer(inputs)
            made = (made,) if isinstance(made, Spec) else made
            need(len(spec.outputs) == len(made), f"writes {len(made)} outputs, got names for {len(spec.outputs)}")
            for name, out in zip(spec.outputs, made, strict=True):
                need(name not in self.specs, f"writes {name!r} a second time")
                check_shape(out.shape, "output")
                self.specs[name] = out
        except (PlanError, ValueError, TypeError, OverflowError) as error:
            raise PlanError(f"{where}: {error}") from None
        self.placed.append(Placed(built, list(spec.inputs), list(spec.outputs), [], inputs))

    def _choose_forms(self) -> None:
        """Let levels be bytes where their writer can write them and every reader would have them."""
        readers: dict[str, list[Placed]] = {}
        for placed in self.placed:
            for name in set(placed.inputs):
                readers.setdefault(name, []).append(placed)
        for placed in self.placed:
            writer = placed.step.level_writer
            for name in placed.outputs if writer is not None else []:
                spec = self.specs[name]
                if spec.kind != "bits" or not fit_bytes(spec.multipliers, spec.signed):
                    continue
                if len(spec.multipliers) == 1 and not placed.step.writes_signs_as_bytes:
                    continue
                found = readers.get(name, [])
                wanted = [_reads_levels(reader, name) and reader.step.reads_bytes(reader.given) for reader in found]
                if writer is not None and wanted and all(wanted):
                    writer.as_bytes = True
                    self.specs[name] = spec._replace(as_bytes=True)
        for placed in self.placed:
            placed.given[:] = [self.specs[name] for name in placed.inputs]

    def _check_outputs(
        self, last: str, outputs: Sequence[tuple[str, Sequence[int]]] | None
    ) -> list[tuple[str, tuple[int, ...]]]:
        try:
            given = [(last, self.specs[last].shape)] if outputs is None else outputs
            checked = [(register, check_shape(shape, "output", most=4)) for register, shape in given]
        except TypeError:
            raise PlanError(f"outputs must be (register, shape) pairs, got {outputs!r:.200}") from None
        need(len(checked) > 0, "a plan needs at least one output")
        for register, shape in checked:
            need(register in self.specs, f"output {register!r} is written by no step")
            need(self.specs[register].kind != "bits", "a plan ends with numbers, not with bits")
            need(as_spec_shape(shape) == self.specs[register].shape, f"output {register!r} has not shape {shape}")
        return checked

    def _check_axes(self, given: Sequence[int] | None) -> list[int]:
        axes = [0] * len(self.outputs) if given is None else list(given)
        need(len(axes) == len(self.outputs), f"{len(axes)} axes of the batch for {len(self.outputs)} outputs")
        for axis, (_, shape) in zip(axes, self.outputs, strict=True):
            need(type(axis) is int and 0 <= axis <= len(shape), f"axis {axis!r:.50} is none of an output (N, *{shape})")
        return axes

    def _check_states(self) -> None:
        """PlanError unless states become what fits them, and what steps change in place are states of their own."""
        own = dict(zip(self.state_registers, self.states, strict=True))
        for register, state in own.items():
            if state.output:
                need(state.output in self.specs, f"state {register!r} is to be {state.output!r}, which no step writes")
                found = self.specs[state.output]
                fits = found.kind == "float" and found.shape == self.specs[register].shape
                need(fits, f"state {register!r} has the shape {state.shape}, {state.output!r} is {found}")
        read = [name for placed in self.placed for name in placed.inputs]
        read += [register for register, _ in self.outputs] + [state.output for state in self.states]
        for placed in self.placed:
            for name in (placed.inputs[i] for i in placed.step.in_place):
                kept = name in own and not own[name].add and not own[name].output
                need(kept, f"{placed.step.op} changes {name!r} in place, which is no state that is kept for that")
                need(read.count(name) == 1, f"{placed.step.op} changes {name!r} in place, which something else reads")

    def _most_steps(self) -> int | None:
        own = dict(zip(self.state_registers, self.states, strict=True))
        limits = [
            steps_until(limit, own[placed.inputs[i]])
            for placed in self.placed
            for i, limit in placed.step.below(placed.given).items()
            if placed.inputs[i] in own
        ]
        return min((limit for limit in limits if limit is not None), default=None)

    def bytes_of_an_image(self) -> int:
        """Return the most bytes that the registers of one image take at a time."""
        live = {input_register(i) for i in range(len(self.input_shapes))} | {*self.state_registers}
        most = 0
        for placed in self.placed:
            live.update(placed.outputs)
            most = max(most, sum(self.specs[name].nbytes for name in live))
            live.difference_update(placed.dead)
        return most

    def check(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the inputs of a call, bytes as uint8; TypeError or ValueError if they are none."""
        if len(arrays) != len(self.input_shapes):
            raise TypeError(f"the model takes {len(self.input_shapes)} inputs, got {len(arrays)}")
        for i, (x, shape) in enumerate(zip(arrays, self.input_shapes, strict=True)):
            which = "the input" if len(arrays) == 1 else f"input {i}"
            if type(x) is not np.ndarray and (not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray)):
                raise TypeError(f"{which} must be a NumPy float array, got {type(x).__name__}")
            kind, size = x.dtype.kind, x.dtype.itemsize
            if not (kind == "f" and size <= 8) and not (kind in "iu" and self.takes_integers[i]):
                also = " or uint8" if self.dtypes[i] == "uint8" else ""
                raise TypeError(f"{which} must be a NumPy float{also} array, got {x.dtype}{self._hint(i, x)}")
            if x.ndim == 0 or x.shape[1:] != shape:
                raise ValueError(f"{which} must have shape (N, {', '.join(map(str, shape))}), got {x.shape}")
            if len(x) != len(arrays[0]):
                raise ValueError(f"the inputs must have the same length, got {[len(a) for a in arrays]}")
        if not self._has_bytes:
            return arrays
        return [
            _as_bytes(x, "the input" if len(arrays) == 1 else f"input {i}") if dtype == "uint8" else x
            for i, (x, dtype) in enumerate(zip(arrays, self.dtypes, strict=True))
        ]

    def _hint(self, index: int, x: np.ndarray) -> str:
        bytes_for_floats = x.dtype == np.uint8 and self.dtypes[index] == "float32"
        return "; this network takes normalized images, one that takes pixels is converted with them" * bytes_for_floats
