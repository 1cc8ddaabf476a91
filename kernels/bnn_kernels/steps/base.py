"""What a plan is made of: steps as they lie in a file, specs of the values between them, and the step's interface.

A plan is a list of typed steps over named registers. Each step checks its own attributes and tensors when it is
built, and says what it makes of its inputs' specs, so that a plan whose steps do not fit is refused before it runs.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bnn_kernels import checks
from bnn_kernels.bits.tensor import words_for
from bnn_kernels.errors import PlanError


class Spec(NamedTuple):
    """One value of a plan, batch left out.

    kind: "float" (float32), "int" (int32) or "bits". shape: (C, H, W) or (K,); in memory maps lie channels last.
    signed, multipliers: the planes of bits.
    """

    kind: str
    shape: tuple[int, ...]
    signed: bool = True
    multipliers: tuple[int, ...] = (1,)

    @property
    def nbytes(self) -> int:
        """Bytes of one image's value in memory."""
        if self.kind != "bits":
            return 4 * math.prod(self.shape)
        return 8 * len(self.multipliers) * words_for(self.shape[0]) * math.prod(self.shape[1:])


@dataclass
class StepSpec:
    """A step as it stands in a file.

    op: its kind. inputs, outputs: names of registers. attrs: JSON values. tensors: weights and thresholds. sources: for
    each output the place in the trained network that computes the same, such as "layer1.conv" or "layer2.conv input".
    TypeError if one of them is of another kind.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.op, str):
            raise TypeError(f"op must be a name, got {self.op!r}")
        for name in ("inputs", "outputs", "sources"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise TypeError(f"{name} must be a list of names, got {value!r}")
            setattr(self, name, list(value))
        if not isinstance(self.attrs, dict) or not all(isinstance(key, str) for key in self.attrs):
            raise TypeError(f"attrs must be a dict with names as keys, got {self.attrs!r}")
        if not isinstance(self.tensors, dict) or not all(isinstance(key, str) for key in self.tensors):
            raise TypeError("tensors must be a dict of arrays with names as keys")
        self.tensors = {name: checks.array(value, f"tensor {name!r}", False) for name, value in self.tensors.items()}

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    @property
    def source(self) -> str:
        """The place that the first output comes from, "" if unknown."""
        return self.sources[0] if self.sources else ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Step:
    """One step: built from attributes (JSON values) and tensors, both checked; PlanError says what is wrong."""

    op: ClassVar[str]
    # Names of attributes and tensors; anything else is refused. A tensor name ending in "*" is a prefix.
    attributes: ClassVar[tuple[str, ...]] = ()
    tensor_names: ClassVar[tuple[str, ...]] = ()
    # How many registers it reads; some steps set it from their attributes.
    arity: int = 1

    def __init__(self, attrs: dict[str, Any], tensors: dict[str, np.ndarray]):
        unknown = set(attrs) - set(self.attributes)
        if unknown:
            raise PlanError(f"unknown attributes {sorted(unknown)}")
        for name in tensors:
            if not any(
                name == known or (known[-1] == "*" and name.startswith(known[:-1])) for known in self.tensor_names
            ):
                raise PlanError(f"unknown tensor {name!r}")
        self.attrs = attrs
        self.tensors = tensors
        self.build()

    def build(self) -> None:
        """Check attributes and tensors and prepare what `run` needs."""

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        """Return the spec of the output, or a tuple of them; PlanError if the inputs do not fit."""
        raise NotImplementedError

    def run(self, *inputs: Any) -> Any:
        """Compute the output: float32/int32 arrays channels last (N, H, W, C) or (N, K), or a BitTensor.

        A step whose `infer` gives a tuple returns a tuple. All that it does to numbers goes through `threads.run_rows`,
        `recording.do` or `workspace.zeros`: nothing else happens when a recorded call is played back.
        """
        raise NotImplementedError

    def macs(self, inputs: list[Spec]) -> int:
        """Multiply-accumulates for one image (0 for steps that are not layers)."""
        return 0

    def precision(self, inputs: list[Spec]) -> str:
        """What a layer multiplies, bits of weights and activations: "W1A1"; "" for steps that are not layers."""
        return ""

    def nearby(self, share: float, *inputs: Any) -> tuple[Any, Any] | None:
        """Return the bits if all floats at thresholds were lower, and higher, by a share of the largest."""
        return None

    # -- helpers for build() --------------------------------------------------------------------------------------

    def attr(self, name: str, kind: type) -> Any:
        """Return an attribute of exactly this type; a float is one of float32's."""
        value: Any = self.attrs.get(name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise PlanError(f"attribute {name!r} must be {kind.__name__}, got {value!r}")
        if isinstance(value, (int, float)) and kind is float and not abs(value) <= LARGEST_FLOAT:
            raise PlanError(f"attribute {name!r} must be a float32, got {value!r}")
        return value

    def ints(self, name: str, count: int | None, smallest: int, largest: int = 1 << 20) -> tuple[int, ...]:
        """Return a list attribute of ints within bounds."""
        value = self.attrs.get(name)
        good = (
            isinstance(value, list)
            and (count is None or len(value) == count)
            and all(type(v) is int and smallest <= v <= largest for v in value)
        )
        if not isinstance(value, list) or not good:
            raise PlanError(
                f"attribute {name!r} must be {count or 'some'} integers of at least {smallest}, got {value!r}"
            )
        return tuple(value)

    def tensor(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return a tensor of this dtype and shape (None: any extent); floats must not be NaN."""
        value = self.tensors.get(name)
        if value is None:
            raise PlanError(f"tensor {name!r} is missing")
        fits = len(value.shape) == len(shape) and all(
            b is None or a == b for a, b in zip(value.shape, shape, strict=True)
        )
        if value.dtype != dtype or not fits:
            raise PlanError(f"tensor {name!r} must be {np.dtype(dtype)} {shape}, got {value.dtype} {value.shape}")
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise PlanError(f"tensor {name!r} holds a NaN")
        if value.dtype == np.bool_ and value.view(np.uint8).max(initial=0) > 1:
            raise PlanError(f"tensor {name!r} holds bytes that are neither false nor true")
        return value


LARGEST_FLOAT = float(np.finfo(np.float32).max)
# Values of one image beyond this are no network's; kernels index with 64 bits, but no memory holds a batch of them.
LARGEST_VALUE = 1 << 31


def check_shape(shape: Any, name: str) -> tuple[int, ...]:
    """Return a shape without batch, (C, H, W), (C, L) or (K,), as a tuple of ints; PlanError if it is none."""
    fits = isinstance(shape, (tuple, list)) and 1 <= len(shape) <= 3
    if not fits or any(not isinstance(v, (int, np.integer)) or isinstance(v, bool) or v < 1 for v in shape):
        raise PlanError(f"{name} shape must be (C, H, W), (C, L) or (K,) of positive integers, got {shape!r}")
    if math.prod(shape) > LARGEST_VALUE:
        raise PlanError(f"{name} shape {tuple(shape)} is larger than any network's")
    return tuple(int(v) for v in shape)


STEPS: dict[str, type[Step]] = {}


def step(cls: type[Step]) -> type[Step]:
    """Make a step known to plans by its `op`."""
    STEPS[cls.op] = cls
    return cls


def need(condition: bool, message: str) -> None:
    """Raise PlanError(message) unless the condition holds."""
    if not condition:
        raise PlanError(message)
