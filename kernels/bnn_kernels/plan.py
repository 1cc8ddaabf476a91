"""What a plan is made of: specs of the values between steps, and the step's interface.

A plan is a list of typed steps over named registers. Each step checks its own attributes and tensors when it is
built, and says what it makes of its inputs' specs, so that a plan whose steps do not fit is refused before it runs.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np

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

    def infer(self, inputs: list[Spec]) -> Spec:
        """Return the spec of the output; PlanError if the inputs do not fit."""
        raise NotImplementedError

    def run(self, *inputs: Any) -> Any:
        """Compute the output: float32/int32 arrays channels last (N, H, W, C) or (N, K), or a BitTensor."""
        raise NotImplementedError

    def macs(self, inputs: list[Spec]) -> int:
        """Multiply-accumulates for one image (0 for steps that are not layers)."""
        return 0

    # -- helpers for build() --------------------------------------------------------------------------------------

    def attr(self, name: str, kind: type) -> Any:
        """Return an attribute of exactly this type."""
        value = self.attrs.get(name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise PlanError(f"attribute {name!r} must be {kind.__name__}, got {value!r}")
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
        return value


STEPS: dict[str, type[Step]] = {}


def step(cls: type[Step]) -> type[Step]:
    """Make a step known to plans by its `op`."""
    STEPS[cls.op] = cls
    return cls


def need(condition: bool, message: str) -> None:
    """Raise PlanError(message) unless the condition holds."""
    if not condition:
        raise PlanError(message)
