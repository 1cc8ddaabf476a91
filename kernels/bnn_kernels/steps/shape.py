"""Steps that permute and gather values: reshape, permutation of axes, concatenation, selection by index."""

import math
from dataclasses import dataclass

import numpy as np

from bnn_kernels.ops.gather import gather
from bnn_kernels.ops.permute import permuted
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.workspace import contiguous, empty
from bnn_kernels.steps.base import Spec, Step, check_shape, need, step
from bnn_kernels.steps.fields import Int32, StepFields

# Sides that a permutation may tell apart; a pixel shuffle has six with the batch.
MOST_AXES = 8


@step
class Reshape(Step):
    """The same values in C, H, W order in another shape; bits need no flattening: a linear layer takes the map."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "reshape"
        shape: list[int]

    fields: Fields

    def build(self) -> None:
        shape = check_shape(self.fields.shape, "attribute 'shape'")
        need(len(shape) in (1, 3), f"attribute 'shape' must be (C, H, W) or (K,), got {shape}")
        self.shape = shape

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float", f"takes floats, got {x}")
        need(math.prod(x.shape) == math.prod(self.shape), f"cannot make {self.shape} of {x.shape}")
        return Spec("float", self.shape)

    def run(self, x: np.ndarray) -> np.ndarray:
        shape = x.shape[-1], *x.shape[1:-1]
        return permuted(contiguous(x), shape, range(len(shape)), self.shape)


@step
class Permute(Step):
    """The values in C, H, W order as an array of sides `split`, its axes in another order, in the shape `shape`.

    Transpositions, pixel shuffles and what views and permutations make together.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "permute"
        split: list[int]
        order: list[int]
        shape: list[int]

    fields: Fields

    def build(self) -> None:
        self.split = self.ints("split", None, 1, 1 << 30)
        self.order = self.ints("order", len(self.split), 0)
        need(2 <= len(self.split) <= MOST_AXES, f"attribute 'split' must have 2 to {MOST_AXES} sides")
        need(sorted(self.order) == list(range(len(self.order))), f"attribute 'order' is no order: {self.order}")
        self.shape = check_shape(self.fields.shape, "attribute 'shape'")
        need(len(self.shape) in (1, 3), f"attribute 'shape' must be (C, H, W) or (K,), got {self.shape}")

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float", f"takes floats, got {x}")
        count = math.prod(x.shape)
        fits = math.prod(self.split) == count == math.prod(self.shape)
        need(fits, f"cannot make {self.shape} of {x.shape} by way of {self.split}")
        return Spec("float", self.shape)

    def run(self, x: np.ndarray) -> np.ndarray:
        return permuted(contiguous(x), self.split, self.order, self.shape)


@step
class Concat(Step):
    """Channels of several maps (or features of several vectors) one after the other."""

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "concat"
        count: int

    fields: Fields

    def build(self) -> None:
        self.arity = self.fields.count
        need(2 <= self.arity <= 1 << 12, f"attribute 'count' must be 2 or more, got {self.arity}")

    def infer(self, inputs: list[Spec]) -> Spec:
        first = inputs[0]
        need(all(x.kind == "float" for x in inputs), f"takes floats, got {[x.kind for x in inputs]}")
        need(
            all(len(x.shape) == len(first.shape) and x.shape[1:] == first.shape[1:] for x in inputs),
            f"the maps differ in size: {[x.shape for x in inputs]}",
        )
        return Spec("float", (sum(x.shape[0] for x in inputs), *first.shape[1:]))

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        first = inputs[0]
        out = empty((*first.shape[:-1], sum(x.shape[-1] for x in inputs)), np.float32)
        do(np.concatenate, inputs, -1, out)
        return out


@step
class Select(Step):
    """Gather channels, rows and columns of a map by index; -1 gives zeros.

    Channel shuffles, slices, splits, zero padding, ResNet's parameter-free shortcuts.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "select"
        channels: Int32 | None = None
        rows: Int32 | None = None
        columns: Int32 | None = None

    fields: Fields

    def build(self) -> None:
        self.index = {name: self.tensor(name, (None,)) for name in self.fields.tensors()}
        for name, index in self.index.items():
            need(len(index) > 0 and int(index.min()) >= -1, f"tensor {name!r} must hold numbers from 0 on, or -1")

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float", f"takes floats, got {x}")
        need(len(x.shape) == 3 or set(self.index) <= {"channels"}, "a vector has channels only")
        shape = list(x.shape)
        for axis, name in enumerate(("channels", "rows", "columns")[: len(shape)]):
            index = self.index.get(name)
            if index is not None:
                need(int(index.max()) < shape[axis], f"tensor {name!r} asks for more than {shape[axis]}")
                shape[axis] = len(index)
        return Spec("float", tuple(shape))

    def run(self, x: np.ndarray) -> np.ndarray:
        maps = x if x.ndim == 4 else x[:, None, None]
        names = ("rows", "columns", "channels")
        everything = (np.arange(extent, dtype=np.int32) for extent in maps.shape[1:])
        index = [self.index.get(name, whole) for name, whole in zip(names, everything, strict=True)]
        y = gather(maps, *index)
        return y if x.ndim == 4 else y[:, 0, 0]
