"""PackedModel: a converted network as a plan of steps; NumPy in, NumPy out, no torch."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnn_kernels import file_format
from bnn_kernels import steps_bits as steps_bits  # registers the steps
from bnn_kernels import steps_float as steps_float
from bnn_kernels.errors import PackedFileError, PlanError
from bnn_kernels.plan import STEPS, Spec, Step

INPUT = "x"


@dataclass
class StepSpec:
    """A step as it stands in a file: op, registers, attributes, tensors, and the module it came from."""

    op: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = ""


class PackedModel:
    """A plan of steps over named registers.

    input_shape: (C, H, W) or (K,) of one input. steps: in order; register "x" is the input. PlanError if a step is
    malformed or the steps do not fit together.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        steps: Sequence[StepSpec],
        info: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
    ):
        self.input_shape = tuple(int(v) for v in input_shape)
        self.steps = list(steps)
        self.info = dict(info or {})
        self.versions = dict(versions or {})
        if len(self.input_shape) not in (1, 3) or min(self.input_shape) < 1:
            raise PlanError(f"input shape must be (C, H, W) or (K,), got {self.input_shape}")
        if not self.steps:
            raise PlanError("a plan needs at least one step")
        self._built: list[Step] = []
        self.specs: dict[str, Spec] = {INPUT: Spec("float", self.input_shape)}
        self._step_inputs: list[list[Spec]] = []
        for index, spec in enumerate(self.steps):
            self._add(index, spec)
        self.output = self.steps[-1].output
        if self.specs[self.output].kind == "bits":
            raise PlanError("a plan ends with numbers, not with bits")
        self._program = list(
            zip(self._built, [s.inputs for s in self.steps], [s.output for s in self.steps], strict=True)
        )

    def _add(self, index: int, spec: StepSpec) -> None:
        where = f"step {index} ({spec.op}{', from ' + spec.source if spec.source else ''})"
        if spec.op not in STEPS:
            raise PlanError(f"{where}: unknown op; this version knows {', '.join(sorted(STEPS))}")
        missing = [name for name in spec.inputs if name not in self.specs]
        if missing:
            raise PlanError(f"{where}: reads {missing[0]!r}, which no earlier step writes")
        if spec.output in self.specs:
            raise PlanError(f"{where}: writes {spec.output!r} a second time")
        try:
            built = STEPS[spec.op](spec.attrs, spec.tensors)
            if len(spec.inputs) != built.arity:
                raise PlanError(f"takes {built.arity} inputs, got {len(spec.inputs)}")
            inputs = [self.specs[name] for name in spec.inputs]
            self.specs[spec.output] = built.infer(inputs)
        except (PlanError, ValueError, TypeError) as error:
            raise PlanError(f"{where}: {error}") from None
        self._built.append(built)
        self._step_inputs.append(inputs)

    # -- running --------------------------------------------------------------------------------------------------

    def _enter(self, x: np.ndarray) -> np.ndarray:
        if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64, np.float16):
            got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(f"the input must be a NumPy float array, got {got}")
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"the input must have shape (N, {', '.join(map(str, self.input_shape))}), got {x.shape}")
        x = np.asarray(x, np.float32)
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else np.ascontiguousarray(x)

    def _leave(self, y: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if y.ndim == 4 else y

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32 outputs of float inputs (N, *input_shape), channels first on both sides.

        TypeError if not a float array, ValueError on another shape or on a NaN that meets a quantizer.
        """
        registers: dict[str, Any] = {INPUT: self._enter(x)}
        for step, inputs, output in self._program:
            registers[output] = step.run(*[registers[name] for name in inputs])
        return self._leave(registers[self.output])

    def trace(self, x: np.ndarray, replace: Callable[[int, Any], Any] | None = None) -> np.ndarray:
        """Run step by step; `replace(index, value)` sees each step's value and returns what later steps are to get.

        Maps lie channels last, bits are BitTensors. For parity reports and debugging.
        """
        registers: dict[str, Any] = {INPUT: self._enter(x)}
        for index, (step, inputs, output) in enumerate(self._program):
            value = step.run(*[registers[name] for name in inputs])
            registers[output] = value if replace is None else replace(index, value)
        return self._leave(registers[self.output])

    def run_step(self, index: int, *inputs: Any) -> Any:
        """Run one step on values as `trace` hands them out."""
        return self._built[index].run(*inputs)

    def profile(self, x: np.ndarray, repeats: int = 20) -> list[tuple[str, float]]:
        """Return (step, median seconds) for every step on this input."""
        times = np.zeros((repeats, len(self.steps)))
        for repeat in range(-2, repeats):
            registers: dict[str, Any] = {INPUT: self._enter(x)}
            for index, (step, inputs, output) in enumerate(self._program):
                start = time.perf_counter()
                registers[output] = step.run(*[registers[name] for name in inputs])
                if repeat >= 0:
                    times[repeat, index] = time.perf_counter() - start
        names = [f"{spec.op} {spec.source}".strip() for spec in self.steps]
        return list(zip(names, np.median(times, axis=0).tolist(), strict=True))

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors: what the file holds beside its header."""
        return sum(tensor.nbytes for spec in self.steps for tensor in spec.tensors.values())

    def summary(self) -> str:
        """Return a table: step, source module, output, multiply-accumulates, stored bytes."""
        rows = [("step", "from", "output", "MACs", "bytes")]
        for spec, built, inputs in zip(self.steps, self._built, self._step_inputs, strict=True):
            out = self.specs[spec.output]
            kind = f"{len(out.multipliers)}-plane bits" if out.kind == "bits" else out.kind
            shape = "x".join(map(str, out.shape))
            size = sum(tensor.nbytes for tensor in spec.tensors.values())
            rows.append((spec.op, spec.source, f"{kind} {shape}", f"{built.macs(inputs):,}", f"{size:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, f"{len(self.steps)} steps, {self.nbytes:,} bytes of weights and thresholds"])

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        output = ", ".join(map(str, self.specs[self.output].shape))
        return f"PackedModel((N, {shape}) -> (N, {output}), {len(self.steps)} steps, {self.nbytes:,} bytes)"

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a packed file, whole or not at all."""
        steps = [
            {
                "op": spec.op,
                "inputs": spec.inputs,
                "output": spec.output,
                "attrs": spec.attrs,
                "tensors": sorted(spec.tensors),
                "source": spec.source,
            }
            for spec in self.steps
        ]
        header = {
            "input_shape": list(self.input_shape),
            "steps": steps,
            "versions": self.versions,
            "info": self.info,
        }
        tensors = {f"{i}.{name}": t for i, spec in enumerate(self.steps) for name, t in spec.tensors.items()}
        file_format.write(path, header, tensors)


def load(path: str | os.PathLike[str]) -> PackedModel:
    """Read a packed file. FileNotFoundError; PackedFileError if it is damaged; PlanError if its plan does not fit."""
    header, tensors = file_format.read(path)
    try:
        steps = []
        for index, step in enumerate(header["steps"]):
            own = {str(name): tensors.pop(f"{index}.{name}") for name in step["tensors"]}
            inputs = [str(name) for name in step["inputs"]]
            attrs = dict(step["attrs"])
            steps.append(StepSpec(str(step["op"]), inputs, str(step["output"]), attrs, own, str(step["source"])))
        arguments = ([int(v) for v in header["input_shape"]], steps, dict(header["info"]), dict(header["versions"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackedFileError(f"{path}: malformed header: {error!r}") from None
    if tensors:
        raise PackedFileError(f"{path}: tensor {min(tensors)!r} belongs to no step")
    return PackedModel(*arguments)
