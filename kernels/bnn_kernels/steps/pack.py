"""Floats to bits, by rounding or through the thresholds of each channel, and bits to floats."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, LevelTensor, as_planes, codes_of_bytes
from bnn_kernels.bits.level_quantize import quantize_to_bytes
from bnn_kernels.bits.planes import check_planes, level_of_code
from bnn_kernels.bits.quantize import in_order
from bnn_kernels.bits.tensor import BitTensor, flip_words, pack_by_bounds, quantize_channels_last, unpack_codes
from bnn_kernels.compile.jit import jit
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.runtime.recording import do
from bnn_kernels.runtime.threads import run_rows
from bnn_kernels.runtime.workspace import empty
from bnn_kernels.steps.base import Spec, Step, need, step
from bnn_kernels.steps.fields import Bool, Float32, StepFields, Uint8
from bnn_kernels.steps.finish import as_map, levels_of, within

# Thresholds of fewer channels than this are repeated for neighbouring pixels, up to so many in all (64 KiB).
FEW_CHANNELS = 16
MOST_REPEATED = 1 << 14


@step
class Pack(Step):
    """Float -> bits: evenly spaced levels, the same in all channels, or those of thresholds.

    Of these level index = #{i : (x >= thresholds[i]) xor flip}, and the codes table gives its planes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "pack"
        levels: dict[str, Any] | None = None
        signed: bool | None = None
        multipliers: list[int] | None = None
        thresholds: Float32 | None = None
        flip: Bool | None = None
        codes: Uint8 | None = None

    fields: Fields

    def build(self) -> None:
        given = self.fields
        self.levels, self.as_bytes = levels_of(given.levels), False
        self.rounding: dict[int, Epilogue] = {}
        if self.levels is not None:
            need(set(given.attrs()) == {"levels"} and not self.tensors, "levels need no planes and no thresholds")
            return
        need(given.signed is not None, "attribute 'signed' must be bool, got None")
        need(given.multipliers is not None, "attribute 'multipliers' must be a list, got None")
        assert given.signed is not None and given.multipliers is not None
        self.signed = given.signed
        self.multipliers = check_planes(given.multipliers, self.signed)
        self.thresholds = self.tensor("thresholds", (None, None))
        self.codes = self.tensor("codes", (len(self.thresholds) + 1,))
        self.flip = self.tensor("flip", self.thresholds.shape[1:])
        need(int(self.codes.max()) >> len(self.multipliers) == 0, "a code does not fit the planes")
        self.channels = self.thresholds.shape[1]
        self.ready: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        # One comparison a bit is far cheaper than a search.
        self.is_sign = self.multipliers == (1,) and tuple(self.codes) == (1, 0)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "float", f"takes floats, got {x}")
        if self.levels is not None:
            return Spec("bits", x.shape, False, self.levels.multipliers)
        need(self.channels in (1, x.shape[0]), f"has thresholds for {self.channels} channels, got {x.shape[0]}")
        return Spec("bits", x.shape, self.signed, self.multipliers)

    @property
    def level_writer(self) -> "Pack":
        return self

    @property
    def writes_signs_as_bytes(self) -> bool:
        return True

    def run(self, x: np.ndarray) -> LevelTensor:
        shape = x.shape if x.ndim == 2 else (x.shape[0], x.shape[3], x.shape[1], x.shape[2])
        if self.levels is not None:
            return self.rounded(x, shape)
        given = as_map(x)
        planes = (self.codes, self.signed, self.multipliers)
        if self.as_bytes:
            n, height, width, channels = given.shape
            pixels = self.pixels_at_once(width, channels)
            thresholds, flip = self.for_channels(channels, pixels)
            rows = given.reshape(n, height, width // pixels, pixels * channels)
            return quantize_to_bytes(rows, shape, thresholds, flip, *planes)
        thresholds, flip = self.for_channels(shape[1])
        if self.is_sign:
            return pack_by_bounds(given, shape, thresholds[0], flip)
        return quantize_channels_last(given, shape, thresholds, flip, *planes)

    def pixels_at_once(self, width: int, channels: int) -> int:
        """Return how many neighbours are quantized as if they were channels of one pixel: few channels are slow."""
        if channels >= FEW_CHANNELS:
            return 1
        most = max(1, MOST_REPEATED // (len(self.thresholds) * channels))
        return max(count for count in range(1, min(width, most) + 1) if width % count == 0)

    def nearby(self, share: float, x: np.ndarray) -> tuple[BitTensor, BitTensor]:
        rounding = within(share, x)
        return as_planes(self.run(x - rounding)), as_planes(self.run(x + rounding))

    def rounded(self, x: np.ndarray, shape: tuple[int, ...]) -> LevelTensor:
        """Return evenly spaced levels."""
        given = as_map(x)
        if self.as_bytes:  # a byte a number, the same in all channels: three of them are slow, a row of pixels is not
            given = given.reshape(*given.shape[:2], 1, -1)
        channels = given.shape[3]
        if channels not in self.rounding:
            self.rounding[channels] = Epilogue(channels, levels=self.levels, as_bytes=self.as_bytes)
        _, made = self.rounding[channels](given, keep=False)
        assert made is not None
        return made.with_shape(shape)

    def for_channels(self, channels: int, pixels: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return thresholds and directions as the kernels take them, for that many channels of that many pixels."""
        key = channels, pixels
        if key not in self.ready:
            thresholds = np.broadcast_to(in_order(self.thresholds, self.flip), (len(self.thresholds), channels))
            flip = np.tile(np.broadcast_to(self.flip, channels), pixels)
            ready = flip_words(flip) if self.is_sign and not self.as_bytes else flip.astype(np.uint8)
            self.ready[key] = np.tile(thresholds, pixels), ready
        return self.ready[key]


@jit
def _values_of_bytes(u, values, out, channels, first, last):
    """Rows of out float32 flat (R, C): the values, float32 flat (C, 256), of bytes u uint8 flat (R, C)."""
    for row in range(first, last):
        at = row * channels
        for c in range(channels):
            out[at + c] = values[(c << 8) + u[at + c]]


@jit
def _values_of_rgb(u, values, out, channels, first, last):
    """The same of three channels: a third of the time."""
    red, green, blue = values[:256], values[256:512], values[512:]
    given, to = u[3 * first : 3 * last], out[3 * first : 3 * last]
    for i in range(last - first):
        to[3 * i] = red[given[3 * i]]
        to[3 * i + 1] = green[given[3 * i + 1]]
        to[3 * i + 2] = blue[given[3 * i + 2]]


@step
class Unpack(Step):
    """Bits -> float, for float weights after a quantized input: level * scale, or the value of every code.

    values: (codes,), or (C, codes) of each channel.
    """

    @dataclass(frozen=True, kw_only=True)
    class Fields(StepFields):
        op = "unpack"
        scale: float | None = None
        values: Float32 | None = None

    fields: Fields

    def build(self) -> None:
        scale = self.fields.scale
        need((scale is None) != (self.fields.values is None), "needs a scale or values, one of them")
        values = self.fields.values
        self.values = None if values is None else self.tensor("values", (None,) * min(2, max(1, values.ndim)))
        self.scale = None if scale is None else np.float32(scale)

    def infer(self, inputs: list[Spec]) -> Spec:
        (x,) = inputs
        need(x.kind == "bits", f"takes bits, got {x}")
        codes = 1 << len(x.multipliers)
        sides = None if self.values is None else self.values.shape
        need(sides is None or sides[-1] == codes, f"has not one value for each of {codes} codes")
        need(sides is None or len(sides) == 1 or sides[0] == x.shape[0], f"has values of other channels than {x}")
        return Spec("float", x.shape)

    def run(self, x: LevelTensor) -> np.ndarray:
        y = empty((*x.map_size, x.shape[1]), np.float32)
        values = self.values
        if self.scale is not None:
            values = level_of_code(x.multipliers, x.signed).astype(np.float32) * self.scale
        assert values is not None
        if isinstance(x, LevelBytes):
            table = np.ascontiguousarray(np.broadcast_to(values[..., codes_of_bytes(x)], (x.shape[1], 256)))
            kernel = _values_of_rgb if x.shape[1] == 3 else _values_of_bytes
            arguments = (x.data, table.reshape(-1), y.reshape(-1), x.shape[1])
            run_rows(kernel, y.size // x.shape[1], y.size, *arguments)
        else:
            do(self._unpack, x, values, y)
        return y[:, 0, 0] if len(x.shape) == 2 else y

    @staticmethod
    def _unpack(x: BitTensor, values: np.ndarray, y: np.ndarray) -> None:
        codes = unpack_codes(x)
        if values.ndim == 1:
            np.take(values, codes, out=y)
        else:
            y[...] = values[np.arange(len(values)), codes]
