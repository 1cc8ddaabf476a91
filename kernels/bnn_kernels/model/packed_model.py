"""PackedModel: a converted network as a plan of steps; NumPy in, NumPy out, no torch."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.checks import integer, plain
from bnn_kernels.errors import PackedFileError, PlanError
from bnn_kernels.model import file_format
from bnn_kernels.model import table as model_table
from bnn_kernels.model.inputs import as_channels_last, fill_inputs
from bnn_kernels.model.profile import step_times
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.recording import Recording
from bnn_kernels.runtime.threads import play_kernels
from bnn_kernels.runtime.workspace import Workspace, Workspaces, contiguous, empty, in_use
from bnn_kernels.steps.base import STEPS, Spec, Step, StepSpec, check_shape, need

INPUT = "x"
# Numbers of images in a call of which a model remembers the calls; each keeps the memory of its registers.
MOST_RECORDED = 2
# Bytes of registers that are worked on at a time: more images than fit are taken in parts, which stay in the cache.
AT_A_TIME = 1 << 24


def input_register(index: int) -> str:
    """Return the register of an input: "x", "x1", "x2", ..."""
    return INPUT if index == 0 else f"{INPUT}{index}"


class _Placed(NamedTuple):
    """A built step, the registers that it reads and writes, and those that nobody reads after it."""

    step: Step
    inputs: list[str]
    outputs: list[str]
    dead: list[str]
    given: list[Spec]


class PackedModel:
    """A plan of steps over named registers.

    input_shape: (C, H, W), (C, L) or (K,) of one input, or a list of such for several. steps: in order; registers "x",
    "x1", ... are the inputs. outputs: (register, shape) of what a call returns; by default what the last step writes
    first. PlanError if a step is malformed or the steps do not fit together.

    The number of images in a call is free, and several threads may call one model at the same time.
    """

    def __init__(
        self,
        input_shape: Sequence[Any],
        steps: Sequence[StepSpec],
        info: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
        outputs: Sequence[tuple[str, Sequence[int]]] | None = None,
    ):
        need(isinstance(input_shape, (tuple, list)), f"the input shape must be a tuple or a list, got {input_shape!r}")
        several = len(input_shape) > 0 and not isinstance(input_shape[0], (int, np.integer))
        self.input_shapes = [check_shape(shape, "input") for shape in (input_shape if several else [input_shape])]
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, StepSpec) for step in steps):
            raise TypeError(f"steps must be a list of StepSpec, got {steps!r:.200}")
        self.steps = list(steps)
        self.info = dict(info or {})
        self.versions = dict(versions or {})
        need(len(self.steps) > 0, "a plan needs at least one step")
        self.specs = {
            input_register(i): Spec("float", as_spec_shape(shape)) for i, shape in enumerate(self.input_shapes)
        }
        self._program: list[_Placed] = []
        self._workspaces = Workspaces()
        for index, spec in enumerate(self.steps):
            self._add(index, spec)
        self.outputs = self._check_outputs(outputs)
        self._recordable = all(placed.step.recordable for placed in self._program)
        kept = {register for register, _ in self.outputs}
        for placed in reversed(self._program):
            for register in {*placed.inputs, *placed.outputs} - kept:
                placed.dead.append(register)
                kept.add(register)
        self._most_images = max(1, AT_A_TIME // self._bytes_of_an_image())

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
        self._program.append(_Placed(built, list(spec.inputs), list(spec.outputs), [], inputs))

    def _bytes_of_an_image(self) -> int:
        """Return the most bytes that the registers of one image take at a time."""
        live = {input_register(i) for i in range(len(self.input_shapes))}
        most = 0
        for placed in self._program:
            live.update(placed.outputs)
            most = max(most, sum(self.specs[name].nbytes for name in live))
            live.difference_update(placed.dead)
        return most

    def _check_outputs(self, outputs: Sequence[tuple[str, Sequence[int]]] | None) -> list[tuple[str, tuple[int, ...]]]:
        if outputs is None:
            last = self.steps[-1].output
            outputs = [(last, self.specs[last].shape)]
        try:
            checked = [(register, check_shape(shape, "output")) for register, shape in outputs]
        except TypeError:
            raise PlanError(f"outputs must be (register, shape) pairs, got {outputs!r:.200}") from None
        need(len(checked) > 0, "a plan needs at least one output")
        for register, shape in checked:
            need(register in self.specs, f"output {register!r} is written by no step")
            need(self.specs[register].kind != "bits", "a plan ends with numbers, not with bits")
            need(as_spec_shape(shape) == self.specs[register].shape, f"output {register!r} has not shape {shape}")
        return checked

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the (first) input without the batch."""
        return self.input_shapes[0]

    # -- running --------------------------------------------------------------------------------------------------

    def _check(self, arrays: Sequence[np.ndarray]) -> None:
        if len(arrays) != len(self.input_shapes):
            raise TypeError(f"the model takes {len(self.input_shapes)} inputs, got {len(arrays)}")
        for i, (x, shape) in enumerate(zip(arrays, self.input_shapes, strict=True)):
            which = "the input" if len(arrays) == 1 else f"input {i}"
            if type(x) is not np.ndarray and (not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray)):
                raise TypeError(f"{which} must be a NumPy float array, got {type(x).__name__}")
            kind, size = x.dtype.kind, x.dtype.itemsize
            if not (kind == "f" and size <= 8) and not (kind in "iu" and self._takes_numbers(input_register(i))):
                raise TypeError(f"{which} must be a NumPy float array, got {x.dtype}")
            if x.ndim == 0 or x.shape[1:] != shape:
                raise ValueError(f"{which} must have shape (N, {', '.join(map(str, shape))}), got {x.shape}")
            if len(x) != len(arrays[0]):
                raise ValueError(f"the inputs must have the same length, got {[len(a) for a in arrays]}")

    def _takes_numbers(self, register: str) -> bool:
        """Whether an input may be of integers: they are the rows of tables."""
        return all(spec.op == "embedding" for spec in self.steps if register in spec.inputs)

    def enter(self, *arrays: np.ndarray) -> dict[str, Any]:
        """Return the input registers: checked, float32, maps channels last."""
        self._check(arrays)
        ready = (plain(np.asarray(x, np.float32)) for x in arrays)
        return {input_register(i): contiguous(as_channels_last(x)) for i, x in enumerate(ready)}

    def _leave(self, registers: dict[str, Any], given: Sequence[np.ndarray] = (), own: bool = False) -> Any:
        """Return the outputs, channels first: no two in one memory, and none in that of the given arrays.

        own: copies whatever they are.
        """
        results: list[np.ndarray] = []
        for register, shape in self.outputs:
            y = registers[register]
            y = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
            y = y.copy() if own else np.ascontiguousarray(y)
            if not own and any(np.may_share_memory(y, other) for other in (*given, *results)):
                y = y.copy()
            results.append(y.reshape(-1, *shape))
        return results[0] if len(results) == 1 else tuple(results)

    def __call__(self, *inputs: np.ndarray) -> Any:
        """Return float32 outputs of float inputs (N, *input_shape), channels first on both sides; a tuple if several.

        TypeError if not float arrays, ValueError on another shape or on a NaN that meets a quantizer.
        """
        self._check(inputs)
        # Kernels are compiled for arrays that can be written.
        for x in inputs:
            if not x.flags.writeable:
                inputs = tuple(map(plain, inputs))
                break
        count, most = len(inputs[0]), self._most_images
        if count <= most:
            return self._call(inputs)
        results: list[np.ndarray] = []
        for first in range(0, count, most):
            part = self._call([x[first : first + most] for x in inputs])
            for i, y in enumerate(part if isinstance(part, tuple) else (part,)):
                if first == 0:
                    results.append(new_array((count, *y.shape[1:]), np.float32, "the output"))
                results[i][first : first + most] = y
        return results[0] if len(results) == 1 else tuple(results)

    def _call(self, inputs: Sequence[np.ndarray]) -> Any:
        count = len(inputs[0])
        workspace = self._workspaces.take()
        try:
            recorded = workspace.recorded.get(count)
            if recorded is not None:
                return self._play(recorded, inputs)
            if self._recordable and workspace.last == count:
                return self._record(workspace, count, inputs)
            workspace.last = count
            return self._run_once(workspace, inputs)
        finally:
            self._workspaces.give_back(workspace)

    def _run_once(self, workspace: Workspace, inputs: Sequence[np.ndarray]) -> Any:
        with in_use(workspace):
            registers = self._run(workspace, self.enter(*inputs))
            found = self._leave(registers)
            # What a caller gets is his alone: not the memory of an input, nor that of another output.
            results: list[np.ndarray] = []
            for y in found if isinstance(found, tuple) else (found,):
                shared = any(np.may_share_memory(y, other) for other in (*inputs, *results))
                results.append(y.copy() if shared else y)
            for register in {register for register, _ in self.outputs}:
                if not any(np.may_share_memory(registers[register], y) for y in results):
                    workspace.drop(registers[register])
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, workspace: Workspace, registers: dict[str, Any]) -> dict[str, Any]:
        """Return what is left in the registers after all steps."""
        workspace.keep(registers.values())
        for step, names, outputs, dead, _given in self._program:
            value = step.run(*[registers[name] for name in names])
            values = (value,) if len(outputs) == 1 else value
            registers.update(zip(outputs, values, strict=True))
            workspace.keep(map(_memory, values))
            for name in dead:
                workspace.drop(_memory(registers.pop(name)))
        return registers

    def _record(self, workspace: Workspace, count: int, inputs: Sequence[np.ndarray]) -> Any:
        """Run and record a call, in memory that stays the recording's own."""
        workspace.clear()
        recording = Recording()
        with in_use(own := Workspace()):
            registers: dict[str, Any] = {}
            for i, x in enumerate(inputs):
                shape = as_channels_last(x).shape
                registers[input_register(i)] = empty(shape, np.float32)
            given = list(registers.values())
            fill_inputs(given, inputs)
            with recording.running():
                registers = self._run(own, registers)
            result = self._leave(registers, own=True)
        while len(workspace.recorded) >= MOST_RECORDED:
            workspace.recorded.pop(next(iter(workspace.recorded)))
        workspace.recorded[count] = _Recorded(recording, given, registers)
        return result

    def _play(self, recorded: "_Recorded", inputs: Sequence[np.ndarray]) -> Any:
        fill_inputs(recorded.inputs, inputs)
        recorded.recording.play(play_kernels)
        return self._leave(recorded.registers, own=True)

    def trace(self, *inputs: np.ndarray, replace: Callable[[str, Any], Any]) -> Any:
        """Run step by step; `replace(register, value)` sees each value and returns what later steps are to get.

        Maps lie channels last, bits are BitTensors. For parity reports and debugging.
        """
        registers = self.enter(*inputs)
        for placed in self._program:
            value = placed.step.run(*[registers[name] for name in placed.inputs])
            values = (value,) if len(placed.outputs) == 1 else value
            for name, part in zip(placed.outputs, values, strict=True):
                registers[name] = replace(name, part)
        return self._leave(registers, own=True)

    def nearby(self, index: int, share: float, *inputs: Any) -> tuple[Any, Any] | None:
        """Return the bits that a step makes if every float that it holds against thresholds is lower, and higher.

        share: by how much, as a share of the largest of the floats. Between the two lie all levels that floats within
        that rounding can get. None if the step makes no bits of floats.
        """
        return self._program[index].step.nearby(share, *inputs)

    def run_step(self, index: int, *inputs: Any) -> Any:
        """Run one step on values as `trace` hands them out."""
        return self._program[index].step.run(*inputs)

    def profile(self, *inputs: np.ndarray, repeats: int = 20) -> list[tuple[str, float]]:
        """Return (step, median seconds) for every step on these inputs, each played back as in a later call.

        What a call takes beside them is the copy of its inputs and outputs.
        """
        repeats = integer(repeats, "repeats", 1)
        steps = [(placed.step, placed.inputs, placed.outputs) for placed in self._program]
        times = step_times(steps, self.enter(*inputs), repeats)
        names = [f"{spec.op} {spec.source}".strip() for spec in self.steps]
        return list(zip(names, times, strict=True))

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors: the payload of the file."""
        return sum(spec.nbytes for spec in self.steps)

    def costs(self) -> list[model_table.StepCost]:
        """Return what each step makes and costs, for one image."""
        return [
            model_table.StepCost(
                spec.op,
                spec.source,
                [self.specs[name] for name in spec.outputs],
                placed.step.precision(placed.given),
                placed.step.macs(placed.given),
                spec.nbytes,
            )
            for spec, placed in zip(self.steps, self._program, strict=True)
        ]

    def summary(self, *inputs: np.ndarray) -> str:
        """Return a table of the steps: source module, output, bits, multiply-accumulates for one image, stored bytes.

        With inputs each step is also timed on them.
        """
        seconds = [time for _, time in self.profile(*inputs)] if inputs else None
        return model_table.table(self.costs(), seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what a file holds; layouts, buffers and recordings are made anew where it is used."""
        return type(self), (self.input_shapes, self.steps, self.info, self.versions, self.outputs)

    def __repr__(self) -> str:
        def shapes(items: Sequence[tuple[int, ...]]) -> str:
            return ", ".join(f"(N, {', '.join(map(str, shape))})" for shape in items)

        name = self.info.get("model", "")
        macs = model_table.macs_by_precision(self.costs())
        return (
            f"PackedModel({str(name) + ': ' if name else ''}{shapes(self.input_shapes)} -> "
            f"{shapes([shape for _, shape in self.outputs])}, {len(self.steps)} steps, {self.nbytes:,} bytes"
            f"{''.join(f', {count:,} MACs {precision}' for precision, count in macs.items())})"
        )

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a packed file, whole or not at all."""
        steps = [
            {
                "op": spec.op,
                "inputs": spec.inputs,
                "outputs": spec.outputs,
                "attrs": spec.attrs,
                "tensors": sorted(spec.tensors),
                "sources": spec.sources,
            }
            for spec in self.steps
        ]
        header = {
            "inputs": [list(shape) for shape in self.input_shapes],
            "outputs": [[register, list(shape)] for register, shape in self.outputs],
            "steps": steps,
            "versions": self.versions,
            "info": self.info,
        }
        tensors = {f"{i}.{name}": t for i, spec in enumerate(self.steps) for name, t in spec.tensors.items()}
        file_format.write(path, header, tensors)


class _Recorded(NamedTuple):
    """A recorded call: the memory of its inputs, and the registers that its outputs are in."""

    recording: Recording
    inputs: list[np.ndarray]
    registers: dict[str, Any]


def _memory(value: Any) -> np.ndarray:
    return value.words if isinstance(value, BitTensor) else value


def as_spec_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a value has within a plan: a sequence (C, L) is a map of one row."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"expected a list of names, got {value!r}")
    return list(value)


def load(path: str | os.PathLike[str]) -> PackedModel:
    """Map a packed file into memory.

    FileNotFoundError; PackedFileError if it is damaged; PlanError if its plan does not fit. Tensors stay in the file
    until a step needs them, so the file must not be changed in place while the model lives; saving over it is safe,
    because that writes a new file under the same name.
    """
    header, tensors = file_format.read(path)
    try:
        steps = []
        for index, step in enumerate(header["steps"]):
            own = {name: tensors.pop(f"{index}.{name}") for name in _names(step["tensors"])}
            registers = _names(step["inputs"]), _names(step["outputs"])
            steps.append(StepSpec(str(step["op"]), *registers, dict(step["attrs"]), own, _names(step["sources"])))
        inputs = [tuple(shape) for shape in header["inputs"]]
        outputs = [(str(register), tuple(shape)) for register, shape in header["outputs"]]
        more = dict(header["info"]), dict(header["versions"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackedFileError(f"{path}: malformed header: {error!r}") from None
    if tensors:
        raise PackedFileError(f"{path}: tensor {min(tensors)!r} belongs to no step")
    return PackedModel(inputs, steps, *more, outputs)
