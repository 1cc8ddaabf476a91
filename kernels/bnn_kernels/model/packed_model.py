"""PackedModel: a converted network as a plan of steps; NumPy in, NumPy out, no torch."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnn_kernels.checks import integer
from bnn_kernels.model import saving, table
from bnn_kernels.model.executor import Executor, shown
from bnn_kernels.model.generate import generate
from bnn_kernels.model.profile import step_times
from bnn_kernels.model.program import Placed, Program
from bnn_kernels.model.state import State, StateSpec
from bnn_kernels.runtime.mapped import release_files
from bnn_kernels.steps.base import Spec, check_shape, need
from bnn_kernels.steps.fields import StepSpec


class PackedModel:
    """A plan of steps over named registers.

    input_shape: (C, D, H, W), (C, H, W), (C, L) or (K,) of one input, or a list of such for several. steps: in order;
    registers "x", "x1", ... are the inputs. outputs: (register, shape) of what a call returns; by default what the last
    step writes first. input_dtypes: "float32" or "uint8" for each input; float32 if not given. states: of a network
    that computes step by step, see `start`. batch_axes: which axis of each output is the batch's, 0 if not given; 1 of
    the last states (layers, N, hidden) of a recurrent network. PlanError if a step is malformed or the steps do not
    fit together.

    The number of images in a call is free, and several threads may call one model at the same time.
    """

    def __init__(
        self,
        input_shape: Sequence[Any],
        steps: Sequence[StepSpec],
        info: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
        outputs: Sequence[tuple[str, Sequence[int]]] | None = None,
        input_dtypes: Sequence[str] | None = None,
        states: Sequence[StateSpec] | None = None,
        batch_axes: Sequence[int] | None = None,
    ):
        need(isinstance(input_shape, (tuple, list)), f"the input shape must be a tuple or a list, got {input_shape!r}")
        several = len(input_shape) > 0 and not isinstance(input_shape[0], (int, np.integer))
        self.input_shapes = [
            check_shape(shape, "input", most=4) for shape in (input_shape if several else [input_shape])
        ]
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, StepSpec) for step in steps):
            raise TypeError(f"steps must be a list of StepSpec, got {steps!r:.200}")
        self.steps = list(steps)
        self.info = dict(info or {})
        self.versions = dict(versions or {})
        self._program = Program(self.input_shapes, self.steps, outputs, input_dtypes, states, batch_axes)
        self.states = self._program.states
        self.input_dtypes = self._program.dtypes
        self._executor = Executor(self._program)
        self.outputs = self._program.outputs
        self.batch_axes = self._program.batch_axes

    @property
    def specs(self) -> dict[str, Spec]:
        """What every register holds."""
        return self._program.specs

    @property
    def placed(self) -> list[Placed]:
        """The steps as they run, with their registers and what is read for the last time: for exporters."""
        return self._program.placed

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the (first) input without the batch."""
        return self.input_shapes[0]

    # -- running --------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: np.ndarray) -> Any:
        """Return float32 outputs of float inputs (N, *input_shape), channels first on both sides; a tuple if several.

        Maps that lie in memory with their channels last, as PyTorch's `channels_last` tensors, save copies, and the
        maps that come out lie so too.

        An input of `input_dtypes` "uint8" takes uint8, or numbers of another kind that are whole and 0 .. 255.
        TypeError on other arrays, ValueError on another shape, on other numbers where bytes are wanted, or on a NaN
        that meets a quantizer. Of a network with states it is the first step from a new one.
        """
        return self._executor.call(self._program.check(inputs))

    def start(self, batch: int = 1) -> State:
        """Return what the network remembers of `batch` sequences before their first step, such as empty caches.

        ValueError if it has no states: `bnn.convert_step` makes those that do.
        """
        if not self.states:
            raise ValueError("the model has no states: only those that bnn.convert_step makes compute step by step")
        return self._executor.start(integer(batch, "batch", 1))

    @property
    def most_steps(self) -> int | None:
        """How many steps a state can take: what a decoder calls its context; None if there is no end."""
        return self._program.most_steps

    def step(self, *inputs: Any) -> Any:
        """Return the outputs of the next step: `step(x, state)`, x (N, *input_shape); the state is changed.

        Several inputs come one after the other, the state last. ValueError on another batch than the state's, on one of
        another model, and after `most_steps` steps, when the state is left as it is.
        """
        *arrays, state = inputs or (None,)
        if not isinstance(state, State):
            raise TypeError(f"step takes inputs and, last, a state that start() gave, got {type(state).__name__}")
        if state.owner is not self._program:
            raise ValueError("the state is one of another model: begin with start() of this one")
        if self.most_steps is not None and state.length >= self.most_steps:
            raise ValueError(f"the state has taken {state.length} steps, and the model can take no more: start anew")
        checked = self._program.check(arrays)
        if len(checked[0]) != state.batch:
            raise ValueError(f"the state is of {state.batch} sequences, the input of {len(checked[0])}")
        return self._executor.step(checked, state)

    def generate(
        self, tokens: np.ndarray, count: int, temperature: float = 0.0, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """Return tokens (N, T), T >= 1, followed by `count` more, int64 (N, T + count); see `model.generate`."""
        return generate(self, tokens, count, temperature, generator)

    def enter(self, *arrays: np.ndarray) -> dict[str, Any]:
        """Return the input registers: checked, float32 or levels as bytes, maps channels last."""
        return self._executor.enter(*arrays)

    def trace(self, *inputs: np.ndarray, replace: Callable[[str, Any], Any]) -> Any:
        """Run step by step; `replace(register, value)` sees each value and returns what later steps are to get.

        Maps lie channels last, levels are BitTensors, also those that are bytes between two steps. For parity reports
        and debugging.
        """
        return self._executor.trace(inputs, replace)

    def nearby(self, index: int, share: float, *inputs: Any) -> tuple[Any, Any] | None:
        """Return the bits that a step makes if every float that it holds against thresholds is lower, and higher.

        share: by how much, as a share of the largest of the floats. Between the two lie all levels that floats within
        that rounding can get. None if the step makes no bits of floats.
        """
        return self._program.placed[index].step.nearby(share, *inputs)

    def run_step(self, index: int, *inputs: Any) -> Any:
        """Run one step on values as `trace` hands them out."""
        made = self._program.placed[index].step.run(*inputs)
        return tuple(map(shown, made)) if isinstance(made, tuple) else shown(made)

    def profile(self, *inputs: np.ndarray, repeats: int = 20) -> list[tuple[str, float]]:
        """Return (step, median seconds) for every step on these inputs, each played back as in a later call.

        What a call takes beside them is the copy of its inputs and outputs.
        """
        repeats = integer(repeats, "repeats", 1)
        steps = [(placed.step, placed.inputs, placed.outputs) for placed in self._program.placed]
        times = step_times(steps, self.enter(*inputs), repeats)
        names = [f"{spec.op} {spec.source}".strip() for spec in self.steps]
        return list(zip(names, times, strict=True))

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all steps."""
        return sum(spec.nbytes for spec in self.steps)

    @functools.cached_property
    def stored_bytes(self) -> int:
        """Bytes of the tensors in its file, the payload: equal ones from 256 bytes on once, some floats in 16 bits."""
        return sum(tensor.nbytes for tensor in saving.stored(self.steps)[0].values())

    def costs(self) -> list[table.StepCost]:
        """Return what each step makes and costs, for one image."""
        return [
            table.StepCost(
                spec.op,
                spec.source,
                [self.specs[name] for name in spec.outputs],
                placed.step.precision(placed.given),
                placed.step.macs(placed.given),
                spec.nbytes,
                placed.step.kernel(placed.given),
            )
            for spec, placed in zip(self.steps, self._program.placed, strict=True)
        ]

    def summary(self, *inputs: np.ndarray) -> str:
        """Return a table of the steps and, of layers, which kernels they run on this CPU and why.

        The other columns: source module, output, bits, multiply-accumulates for one image, stored bytes. With inputs
        each step is also timed on them.
        """
        seconds = [time for _, time in self.profile(*inputs)] if inputs else None
        return table.table(self.costs(), seconds, self.stored_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what a file holds; layouts, buffers and recordings are made anew where it is used."""
        given = (self.input_shapes, self.steps, self.info, self.versions, self.outputs, self.input_dtypes, self.states)
        return type(self), (*given, self.batch_axes)

    def __repr__(self) -> str:
        def shapes(items: Sequence[tuple[int, ...]], axes: Sequence[int] | None = None) -> str:
            places = zip(items, axes or [0] * len(items), strict=True)
            return ", ".join(f"({', '.join(map(str, (*shape[:axis], 'N', *shape[axis:])))})" for shape, axis in places)

        name = self.info.get("model", "")
        macs = table.macs_by_precision(self.costs())
        kinds = f" {', '.join(self.input_dtypes)}" if "uint8" in self.input_dtypes else ""
        return (
            f"PackedModel({str(name) + ': ' if name else ''}{shapes(self.input_shapes)}{kinds} -> "
            f"{shapes([shape for _, shape in self.outputs], self.batch_axes)}, {len(self.steps)} steps, "
            f"{self.stored_bytes:,} bytes"
            f"{f', {len(self.states)} states' if self.states else ''}"
            f"{''.join(f', {count:,} MACs {precision}' for precision, count in macs.items())})"
        )

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a packed file, whole or not at all."""
        given = self.input_shapes, self.steps, self.outputs, self.info, self.versions, self.input_dtypes, self.states
        saving.write(path, saving.Saved(*given, self.batch_axes))


def load(path: str | os.PathLike[str]) -> PackedModel:
    """Map a packed file into memory.

    FileNotFoundError; PackedFileError if it is damaged; PlanError if its plan does not fit. Tensors stay in the file
    until a step needs them, and cannot be written to; so the file must not be changed in place while the model lives;
    saving over it is safe, because that writes a new file under the same name.
    """
    saved = saving.read(path)
    given = saved.inputs, saved.steps, saved.info, saved.versions, saved.outputs, saved.dtypes, saved.states
    model = PackedModel(*given, saved.batch_axes)
    release_files(tensor for step in model.steps for tensor in step.tensors.values())
    return model
