"""What a plan is made of: specs of the values between steps, and the interface of a step.

A plan is a list of typed steps over named registers. Each step checks its own attributes and tensors when it is
built, and says what it makes of its inputs' specs, so that a plan whose steps do not fit is refused before it runs.
"""

import math
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bnn_kernels.bits.level_bytes import SLACK
from bnn_kernels.bits.tensor import words_for
from bnn_kernels.checks import plain
from bnn_kernels.errors import PlanError


class Spec(NamedTuple):
    """One value of a plan, batch left out.

    kind: "float" (float32), "int" (int32) or "bits". shape: (C, H, W) or (K,); in memory maps lie channels last.
    signed, multipliers: the planes of bits. as_bytes: whether bits are `LevelBytes` in memory, not a `BitTensor`; that
    is no matter of files, a `Program` chooses it.
    """

    kind: str
    shape: tuple[int, ...]
    signed: bool = True
    multipliers: tuple[int, ...] = (1,)
    as_bytes: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one image's value in memory."""
        if self.kind != "bits":
            return 4 * math.prod(self.shape)
        if self.as_bytes:
            return math.prod(self.shape) + SLACK
        return 8 * len(self.multipliers) * words_for(self.shape[0]) * math.prod(self.shape[1:])


class LevelWriter(Protocol):
    """What writes levels, as bytes or as bit planes; set before the first run."""

    as_bytes: bool


class Step:
    """One step: built from attributes (JSON values) and tensors, both checked; PlanError says what is wrong."""

    op: ClassVar[str]
    # What a file holds of it; anything else is refused.
    Fields: ClassVar[type[Any]]
    fields: Any
    # How many registers it reads; some steps set it from their attributes.
    arity: int = 1
    # How many of the first of them it may read as `LevelBytes`, see `reads_bytes`.
    level_inputs: int = 1
    # Which of them it changes: states of a network that computes step by step, which no other step reads.
    in_place: tuple[int, ...] = ()

    def __init__(self, attrs: dict[str, Any], tensors: dict[str, np.ndarray]):
        self.fields = self.Fields.read(attrs, tensors)
        self.tensors = tensors
        self.build()

    def build(self) -> None:
        """Check attributes and tensors and prepare what `run` needs."""

    def infer(self, inputs: list[Spec]) -> Spec | tuple[Spec, ...]:
        """Return the spec of the output, or a tuple of them; PlanError if the inputs do not fit."""
        raise NotImplementedError

    def run(self, *inputs: Any) -> Any:
        """Compute the output: float32/int32 arrays channels last (N, H, W, C) or (N, K), or levels.

        Levels come as a `BitTensor` or as `LevelBytes`, whatever the spec said.

        A step whose `infer` gives a tuple returns a tuple. All that it does to numbers goes through `threads.run_rows`,
        `recording.do` or `workspace.zeros`: nothing else happens when a recorded call is played back.
        """
        raise NotImplementedError

    def below(self, inputs: list[Spec]) -> dict[int, int]:
        """Return for inputs, by their index, what the whole numbers in them must be less than."""
        return {}

    def macs(self, inputs: list[Spec]) -> int:
        """Multiply-accumulates for one image (0 for steps that are not layers)."""
        return 0

    def precision(self, inputs: list[Spec]) -> str:
        """What a layer multiplies, bits of weights and activations: "W1A1"; "" for steps that are not layers."""
        return ""

    def kernel(self, inputs: list[Spec]) -> str:
        """Which kernels a layer runs on this CPU, and why; "" for steps that are not layers."""
        return ""

    @property
    def level_writer(self) -> LevelWriter | None:
        """What decides in which form this step writes levels, None if it writes bit planes or no levels."""
        return None

    @property
    def writes_signs_as_bytes(self) -> bool:
        """Whether what writes levels can also write those of a single plane as bytes."""
        return False

    def reads_bytes(self, inputs: list[Spec]) -> bool:
        """Whether levels as bytes are what this step would rather read, where its inputs are of levels."""
        return False

    def nearby(self, share: float, *inputs: Any) -> tuple[Any, Any] | None:
        """Return the bits, as planes, if all floats at thresholds were lower, and higher, by a share of the largest."""
        return None

    # -- helpers for build() --------------------------------------------------------------------------------------

    def ints(self, name: str, count: int | None, smallest: int, largest: int = 1 << 20) -> tuple[int, ...]:
        """Return a list of ints within bounds."""
        value = getattr(self.fields, name)
        if count not in (None, len(value)) or not all(smallest <= v <= largest for v in value):
            raise PlanError(
                f"attribute {name!r} must be {count or 'some'} integers of at least {smallest}, got {value!r}"
            )
        return tuple(value)

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return a tensor, by its name in a file, of this shape (None: any extent).

        Of a mapped file it is a copy: kernels are compiled for arrays that can be written to.
        """
        return plain(self.stored(name, shape))

    def stored(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return the same where it lies: weights, of which every kernel makes a layout of its own."""
        value = self.tensors.get(name)
        if value is None:
            raise PlanError(f"tensor {name!r} is missing")
        fits = len(value.shape) == len(shape) and all(
            b is None or a == b for a, b in zip(value.shape, shape, strict=True)
        )
        if not fits:
            raise PlanError(f"tensor {name!r} must be {value.dtype} {shape}, got {value.dtype} {value.shape}")
        return value


# Values of one image beyond this are no network's; kernels index with 64 bits, but no memory holds a batch of them.
LARGEST_VALUE = 1 << 31


def check_shape(shape: Any, name: str, most: int = 3) -> tuple[int, ...]:
    """Return a shape without batch, (C, H, W), (C, L) or (K,), as a tuple of ints; PlanError if it is none.

    most: axes that it may have; 4 allows volumes (C, D, H, W) as well.
    """
    fits = isinstance(shape, (tuple, list)) and 1 <= len(shape) <= most
    if not fits or any(not isinstance(v, (int, np.integer)) or isinstance(v, bool) or v < 1 for v in shape):
        volume = "(C, D, H, W), " if most > 3 else ""
        raise PlanError(f"{name} shape must be {volume}(C, H, W), (C, L) or (K,) of positive integers, got {shape!r}")
    if math.prod(shape) > LARGEST_VALUE:
        raise PlanError(f"{name} shape {tuple(shape)} is larger than any network's")
    return tuple(int(v) for v in shape)


STEPS: dict[str, type[Step]] = {}


def step(cls: type[Step]) -> type[Step]:
    """Make a step known to plans by the `op` of its fields."""
    if not hasattr(cls, "Fields"):
        raise TypeError(f"{cls.__name__} declares no fields: class Fields(StepFields) with its op, see steps.fields")
    cls.op = cls.Fields.op
    STEPS[cls.op] = cls
    return cls


def need(condition: bool, message: str) -> None:
    """Raise PlanError(message) unless the condition holds."""
    if not condition:
        raise PlanError(message)
