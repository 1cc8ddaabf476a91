"""The epilogue of a step, read from its attributes and tensors: scale, batch norm, residual, activation, bits."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bnn_kernels.bits.level_bytes import as_planes
from bnn_kernels.bits.tensor import BitTensor
from bnn_kernels.bits.uniform import UniformLevels
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.runtime.lazy import Lazy
from bnn_kernels.steps.base import Spec, Step, need
from bnn_kernels.steps.fields import Bool, Float32, StepFields


@dataclass(frozen=True, kw_only=True)
class EpilogueFields(StepFields):
    """What follows a layer's sums, see `ops.epilogue`; vectors are (channels,).

    keep: whether the floats are handed on. bounds, flip: the signs are handed on too. levels: such evenly spaced levels
    are handed on too, see `UniformLevels`, of the floats or of what level_scale and level_shift make of them. exact:
    they are those that PyTorch computes, though by way of floats: they are made of a layer's integers, and were tried
    on both sides of every threshold. The scale is the layer's own.
    """

    residual: Literal["before", "after"] | None = None
    low: float = -math.inf
    high: float = math.inf
    keep: bool = True
    shift: Float32 | None = None
    norm_scale: Float32 | None = None
    norm_shift: Float32 | None = None
    pre: Float32 | None = None
    slope: Float32 | None = None
    post: Float32 | None = None
    bounds: Float32 | None = None
    flip: Bool | None = None
    levels: dict[str, Any] | None = None
    level_scale: Float32 | None = None
    level_shift: Float32 | None = None
    exact: bool = False


# The names above: those of attributes, and those of tensors.
EPILOGUE_ATTRIBUTES = tuple(one.stored for one in EpilogueFields.declared() if one.dtype is None)
EPILOGUE_TENSORS = tuple(one.stored for one in EpilogueFields.declared() if one.dtype is not None)


def as_map(x: np.ndarray) -> np.ndarray:
    """Return (N, 1, 1, K) of a (N, K) array; maps pass."""
    return x.reshape(len(x), 1, 1, x.shape[1]) if x.ndim == 2 else x


def within(share: float, x: np.ndarray) -> np.float32:
    """Return a share of the largest finite number of x."""
    return np.float32(share * np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max(initial=0))


def levels_of(attribute: dict[str, Any] | None) -> UniformLevels | None:
    """Return the evenly spaced levels of an attribute, if there is one."""
    return None if attribute is None else UniformLevels.of(attribute)


class Finish:
    """What a step does to its floats before it hands them on: read from its attributes and tensors.

    residual: None, "before" or "after" (the step reads one more register then). keep: whether it hands on the floats.
    bits: whether it hands on signs or levels too. scale, shift: float32 (channels,) that the step reads by itself.
    as_bytes: whether levels are to be `LevelBytes`.
    """

    def __init__(self, this: Step, channels: int, scale: np.ndarray | None, shift: np.ndarray | None = None):
        given: EpilogueFields = this.fields
        self.residual, self.keep = given.residual, given.keep
        signs, self.levels = given.bounds is not None, levels_of(given.levels)
        need(not signs or self.levels is None, "a step makes signs or levels, not both")
        has_own = given.level_scale is not None or given.level_shift is not None
        need(not has_own or self.levels is not None, "level_scale and level_shift need levels")
        need(not given.exact or self.levels is not None, "attribute 'exact' needs levels")
        self.bits = signs or self.levels is not None
        need(self.keep or self.bits, "a step must make floats or bits")
        need(given.low <= given.high, "low is above high")
        names = [name for name in EPILOGUE_TENSORS if name in this.tensors and (signs or name != "flip")]
        parts: dict[str, Any] = {name: this.tensor(name, (channels,)) for name in names}
        if signs:
            parts["flip"] = this.tensor("flip", (channels,))
        if shift is not None:
            parts["shift"] = shift
        parts |= {"residual": given.residual, "low": float(given.low), "high": float(given.high)}
        parts["levels"] = self.levels
        self.channels = channels
        self.as_bytes = False
        self._epilogue = Lazy(lambda: Epilogue(channels, scale=scale, as_bytes=self.as_bytes, **parts))
        # Nothing to do to the floats themselves.
        self.is_plain = scale is None and not names and shift is None and self.levels is None
        self.is_plain = self.is_plain and given.residual is None and given.low == -math.inf and given.high == math.inf

    @property
    def epilogue(self) -> Epilogue:
        """The pass itself, made at its first use: no attribute of a file makes it allocate before."""
        return self._epilogue()

    @property
    def level_writer(self) -> "Finish | None":
        """Itself, if it makes levels, which may be bytes."""
        return None if self.levels is None else self

    @property
    def arity(self) -> int:
        """How many registers are read: the residual, if there is one."""
        return 0 if self.residual is None else 1

    def infer(self, shape: tuple[int, ...], residual: list[Spec]) -> Spec | tuple[Spec, ...]:
        """Return the specs of floats and bits, those that are handed on."""
        need(shape[0] == self.channels, f"takes {self.channels} channels, got {shape}")
        for spec in residual:
            need(spec == Spec("float", shape), f"the residual must be float {shape}, got {spec}")
        planes = Spec("bits", shape)
        if self.levels is not None:
            planes = Spec("bits", shape, False, self.levels.multipliers)
        made = [Spec("float", shape)] * self.keep + [planes] * self.bits
        return made[0] if len(made) == 1 else tuple(made)

    def hand_on(self, floats: np.ndarray | None, bits: Any, flat: bool) -> Any:
        """Return what `infer` promised of the epilogue's results; flat: as (N, K)."""
        if flat:
            floats = None if floats is None else floats.reshape(len(floats), self.channels)
            bits = None if bits is None else bits.with_shape(bits.shape[:2])
        return (floats, bits) if self.keep and self.bits else floats if self.keep else bits

    def nearby(self, share: float, y: np.ndarray, residual: np.ndarray | None) -> tuple[BitTensor, BitTensor] | None:
        """Return the bits (N, C, H, W) if all finished floats were lower, and higher, by a share of the largest."""
        if not self.bits:
            return None
        floats, _ = self.epilogue(as_map(y), None if residual is None else as_map(residual))
        assert floats is not None
        rounding = within(share, floats)
        quantize = self.epilogue.quantizer()
        _, lower = quantize(floats - rounding, keep=False)
        _, higher = quantize(floats + rounding, keep=False)
        assert lower is not None and higher is not None
        return as_planes(lower), as_planes(higher)

    def __call__(self, y: np.ndarray, residual: np.ndarray | None) -> Any:
        """Finish floats (N, H, W, C) or (N, K)."""
        if self.is_plain:
            return y
        other = None if residual is None else as_map(residual)
        return self.hand_on(*self.epilogue(as_map(y), other, self.keep), flat=y.ndim == 2)
