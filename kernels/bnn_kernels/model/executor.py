"""How a program runs: step by step at first; a call of the same size is recorded, and from then on played back.

More images than fit the cache with all their registers are taken in parts.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, as_planes, new_level_bytes
from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.checks import plain
from bnn_kernels.model.inputs import as_channels_last, as_register, channels_first, fill_inputs, lies_channels_last
from bnn_kernels.model.program import OF_A_BYTE, Program, input_register
from bnn_kernels.model.state import State, new_state
from bnn_kernels.runtime.arrays import new_array
from bnn_kernels.runtime.mapped import release_files
from bnn_kernels.runtime.recording import Movable, Recording
from bnn_kernels.runtime.threads import play_kernels
from bnn_kernels.runtime.workspace import SMALLEST, Workspace, Workspaces, contiguous, empty, in_use, root

# Numbers of images in a call of which a model remembers the calls; each keeps the memory of its registers.
MOST_RECORDED = 2
# Bytes of registers that are worked on at a time.
AT_A_TIME = 1 << 24


class _Recorded(NamedTuple):
    """A recorded call: the memory of its inputs and its state, and the registers that its outputs are in.

    movable: of inputs and of outputs, what lets kernels read and write the caller's own memory; None: it is copied.
    """

    recording: Recording
    inputs: list[np.ndarray]
    registers: dict[str, Any]
    state: State
    movable_inputs: list[Movable | None]
    movable_outputs: list[Movable | None]


def _memory(value: Any) -> np.ndarray:
    return value.words if isinstance(value, BitTensor) else value.data if isinstance(value, LevelBytes) else value


def _floats_or_bytes(value: Any) -> np.ndarray:
    """Return the memory of an input register as kernels read it."""
    return value.u if isinstance(value, LevelBytes) else value


def _movable(recording: Recording, memory: np.ndarray, arrays: Sequence[np.ndarray]) -> Movable | None:
    """Return what sends kernels elsewhere that use a memory, if it is large and of one alone of these arrays."""
    if memory.nbytes < SMALLEST or sum(np.may_share_memory(memory, x) for x in arrays) != 1:
        return None
    return recording.movable(memory)


def _are_last(inputs: Sequence[np.ndarray]) -> bool:
    """Whether maps come out with their channels last in memory: if an input has them so, as in PyTorch."""
    return any(map(lies_channels_last, inputs))


def _is_turned(y: np.ndarray, shape: Sequence[int], last: bool) -> bool:
    """Whether callers get an output with its channels first in memory; last: see `_are_last`."""
    return y.ndim == 4 and y.shape[3] > 1 and not (last and len(shape) == 3)


def shown(value: Any) -> Any:
    """Return a register's value as users see it: levels that are bytes as bit planes."""
    return as_planes(value) if isinstance(value, LevelBytes) else value


class Executor:
    """Runs a program; several threads may call one executor at the same time.

    most_images: how many images are taken at a time.
    """

    def __init__(self, program: Program):
        self._program = program
        self._workspaces = Workspaces()
        self.most_images = max(1, AT_A_TIME // program.bytes_of_an_image())

    def enter(self, *arrays: np.ndarray) -> dict[str, Any]:
        """Return the input registers, and those of a state at the start: float32 or levels as bytes, channels last."""
        checked = self._program.check(arrays)
        return self._entered_all(checked) | self.start(len(checked[0])).registers

    def _entered_all(self, arrays: Sequence[np.ndarray]) -> dict[str, Any]:
        return {input_register(i): self._entered(i, x) for i, x in enumerate(arrays)}

    def start(self, batch: int) -> State:
        """Return the state of that many sequences before the first step."""
        program = self._program
        shapes = [program.specs[name].shape for name in program.state_registers]
        return new_state(program.states, program.state_registers, shapes, batch, program)

    def step(self, inputs: Sequence[np.ndarray], state: State) -> Any:
        """Return the outputs of checked inputs, and let the state be what follows."""
        return self._handed_out(self._run_in(state.workspace, tuple(map(plain, inputs)), state))

    def _entered(self, index: int, x: np.ndarray) -> Any:
        if self._program.dtypes[index] == "uint8":
            levels = self._new_input(index, x)
            fill_inputs([levels.u], [plain(x)])
            return levels
        return contiguous(as_channels_last(plain(np.asarray(x, np.float32))))

    def _new_input(self, index: int, x: np.ndarray) -> Any:
        """Return a register for an input, still to be filled."""
        if self._program.dtypes[index] == "uint8":
            return new_level_bytes((len(x), *self._program.specs[input_register(index)].shape), False, OF_A_BYTE)
        return empty(as_channels_last(x).shape, np.float32)

    def _leave(self, registers: dict[str, Any], last: bool, own: bool, fresh: Container[str] = ()) -> list[np.ndarray]:
        """Return the outputs, channels first; own: copies, except of registers in memory that is `fresh`.

        last: whether maps lie in memory with their channels last, see `_are_last`.
        """
        results = []
        for register, shape in self._program.outputs:
            y = registers[register]
            if _is_turned(y, shape, last):
                y = channels_first(y)
            else:
                y = y.copy() if own and register not in fresh else y
                y = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
            results.append(y.reshape(-1, *shape))
        return results

    def _handed_out(self, results: Sequence[np.ndarray]) -> Any:
        """Return the outputs with their batch where a caller has it, and one alone if there is one."""
        axes = self._program.batch_axes
        moved = [np.moveaxis(y, 0, axis) if axis else y for y, axis in zip(results, axes, strict=True)]
        return moved[0] if len(moved) == 1 else tuple(moved)

    def call(self, inputs: Sequence[np.ndarray]) -> Any:
        """Return the outputs of checked inputs, in memory that is the caller's alone."""
        # Kernels are compiled for arrays that can be written.
        for x in inputs:
            if not x.flags.writeable:
                inputs = tuple(map(plain, inputs))
                break
        count, most = len(inputs[0]), self.most_images
        if count <= most:
            return self._handed_out(self._call(inputs))
        results: list[np.ndarray] = []
        for first in range(0, count, most):
            part = self._call([x[first : first + most] for x in inputs])
            for i, y in enumerate(part):
                if first == 0:
                    results.append(new_array((count, *y.shape[1:]), np.float32, "the output"))
                results[i][first : first + most] = y
        return self._handed_out(results)

    def _call(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        workspace = self._workspaces.take()
        try:
            return self._run_in(workspace, inputs, None)
        finally:
            self._workspaces.give_back(workspace)

    def _run_in(self, workspace: Workspace, inputs: Sequence[np.ndarray], state: State | None) -> list[np.ndarray]:
        """Run with the memory of a workspace. state: what is remembered; without one every call is a first step."""
        count = len(inputs[0])
        recorded = workspace.recorded.get(count)
        if recorded is not None:
            if state is None:
                recorded.state.reset()
            return self._play(recorded, inputs)
        again = workspace.last == count
        workspace.last = count
        held = self.start(count) if state is None else state
        run = self._record if again else self._run_once
        results = run(workspace, inputs, held)
        # Steps have laid out what they need of the file.
        release_files(tensor for placed in self._program.placed for tensor in placed.step.tensors.values())
        return results

    def _run_once(self, workspace: Workspace, inputs: Sequence[np.ndarray], state: State) -> list[np.ndarray]:
        with in_use(workspace):
            registers = self._run(workspace, self._entered_all(inputs) | state.registers)
            state.advance(registers)
            # What a caller gets is his alone: not the memory of an input, nor that of another output.
            results: list[np.ndarray] = []
            for y in self._leave(registers, _are_last(inputs), own=False):
                shared = any(np.may_share_memory(y, other) for other in (*inputs, *results))
                results.append(y.copy() if shared else y)
            for register in {register for register, _ in self._program.outputs}:
                if not any(np.may_share_memory(registers[register], y) for y in results):
                    workspace.drop(registers[register])
        return results

    def _run(self, workspace: Workspace, registers: dict[str, Any]) -> dict[str, Any]:
        """Return what is left in the registers after all steps."""
        workspace.keep(map(_memory, registers.values()))
        for step, names, outputs, dead, _given in self._program.placed:
            value = step.run(*[registers[name] for name in names])
            values = (value,) if len(outputs) == 1 else value
            registers.update(zip(outputs, values, strict=True))
            workspace.keep(map(_memory, values))
            for name in dead:
                workspace.drop(_memory(registers.pop(name)))
        return registers

    def _record(self, workspace: Workspace, inputs: Sequence[np.ndarray], state: State) -> list[np.ndarray]:
        """Run and record a call, in memory that stays the recording's own."""
        workspace.clear()
        recording = Recording()
        # Nothing else may lie where a call lets the kernels read elsewhere: such memory is not of the workspace.
        apart = [self._new_input(i, x) for i, x in enumerate(inputs)]
        with in_use(own := Workspace()):
            registers: dict[str, Any] = {}
            for i, (x, value) in enumerate(zip(inputs, apart, strict=True)):
                in_place = as_register(x, _floats_or_bytes(value)) is not None
                registers[input_register(i)] = value if in_place else self._new_input(i, x)
            given = [_floats_or_bytes(value) for value in registers.values()]
            fill_inputs(given, inputs)
            with recording.running():
                registers = self._run(own, registers | state.registers)
            state.advance(registers)
            results = self._leave(registers, _are_last(inputs), own=True)
        while len(workspace.recorded) >= MOST_RECORDED:
            workspace.recorded.pop(next(iter(workspace.recorded)))
        outputs = [registers[register] for register, _ in self._program.outputs]
        follows = [registers[spec.output] for spec in self._program.states if spec.output in registers]
        remembered = [_memory(value) for value in (*state.registers.values(), *follows)]
        movable = [
            _movable(recording, memory, [*given, *outputs, *remembered])
            for memory in (*given, *(root(_memory(y)) for y in outputs))
        ]
        workspace.recorded[len(inputs[0])] = _Recorded(
            recording, given, registers, state, movable[: len(given)], movable[len(given) :]
        )
        return results

    def _play(self, recorded: _Recorded, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        for to, x, movable in zip(recorded.inputs, inputs, recorded.movable_inputs, strict=True):
            there = None if movable is None else as_register(x, to)
            if movable is not None:
                movable.move(there)
            if there is None:
                fill_inputs([to], [x])
        last = _are_last(inputs)
        fresh = self._fresh_outputs(recorded, last)
        registers = recorded.registers | fresh
        recorded.recording.play(play_kernels)
        if recorded.state.registers:
            recorded.state.advance(registers)
        return self._leave(registers, last, own=True, fresh=fresh)

    def _fresh_outputs(self, recorded: _Recorded, last: bool) -> dict[str, np.ndarray]:
        """Let the kernels write outputs into new memory where callers get them as they lie; return those registers."""
        fresh = {}
        for (register, shape), movable in zip(self._program.outputs, recorded.movable_outputs, strict=True):
            if movable is None:
                continue
            y = recorded.registers[register]
            if _is_turned(y, shape, last):
                movable.move(None)
            else:
                fresh[register] = movable.elsewhere(y)
        return fresh

    def trace(self, inputs: Sequence[np.ndarray], replace: Callable[[str, Any], Any]) -> Any:
        """Run step by step; `replace(register, value)` sees each value and returns what later steps are to get."""
        registers = self.enter(*inputs)
        for placed in self._program.placed:
            value = placed.step.run(*[registers[name] for name in placed.inputs])
            values = (value,) if len(placed.outputs) == 1 else value
            for name, part in zip(placed.outputs, values, strict=True):
                planes = shown(part)
                given = replace(name, planes)
                registers[name] = part if given is planes else given
        return self._handed_out(self._leave(registers, _are_last(inputs), own=True))
