"""In which form levels are multiplied: the instruction, and how wide an operand is."""

from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.compile.isa import has, isa
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.integer_conv.levels import input_code

SHORT = np.iinfo(np.int16).max


class Form(NamedTuple):
    """How levels are held and multiplied.

    product: the instruction, see `compile.simd.int32_products`. lanes: 32-bit sums of a vector, 8 or 16. elements:
    that a lane multiplies in a step, 4 bytes or 2 of 16 bits. packed: bits that a weight takes in memory: 8, or 16 if
    it needs them, or 1, 2 or 4 where a byte holds the codes of 8, 4 or 2 steps. portable: in instructions that every
    CPU has, for tests of forms that the CPU at hand lacks. shift: what is taken from the input's levels on their way,
    for instructions that multiply signed bytes by signed ones; 0 or 128.
    """

    product: str
    lanes: int
    elements: int
    packed: int = 8
    portable: bool = False
    shift: int = 0

    @property
    def fields(self) -> int:
        """Steps whose codes share a byte of the weights."""
        return 8 // self.packed if self.packed < 8 else 1

    @property
    def opens(self) -> bool:
        """Whether weights in memory are narrower than operands."""
        return self.packed < 8 * np.dtype(self.dtype).itemsize

    @property
    def opens_alone(self) -> bool:
        """Whether the weights of a single position are opened in registers: the loop of "pairs" has none left."""
        return self.product != "pairs"

    @property
    def held(self) -> Any:
        """The type of weights in memory."""
        return np.int8 if self.packed <= 8 else np.int16

    @property
    def dtype(self) -> Any:
        """The element's type, weights and inputs alike; bytes of inputs are read as unsigned."""
        return np.int8 if self.elements == 4 else np.int16


def form_for(weights: Filters, maps: Maps) -> Form | None:
    """Return the form in which this CPU multiplies such levels; None if no form holds them.

    `packed` is that of bytes; `lanes.packed_bits` says where fewer bits do.
    """
    code = input_code(maps)
    levels = weights.level_values
    low, high = int(levels.min()), int(levels.max())
    path = isa()
    if code.largest <= 255 and low >= -128 and high <= 127:
        if path == "avx512" and has("avx512vnni"):
            return Form("vnni", 16, 4)
        if path == "avx2" and has("avxvnni"):
            return Form("vnni", 8, 4)
        if path == "avx2" and 2 * code.largest * weights.largest <= SHORT:
            return Form("pairs", 8, 4)
        if path == "neon":
            shift = 0 if code.largest <= 127 else 128
            if has("i8mm"):
                return Form("usdot", 8, 4)
            if has("dotprod"):
                return Form("sdot", 8, 4, shift=shift)
            if 2 * max(shift, code.largest - shift) * weights.largest <= SHORT:
                return Form("smull", 8, 4, shift=shift)
    if max(code.largest, weights.largest) > SHORT:
        return None
    return Form("shorts", 16 if path == "avx512" and has("avx512bw") else 8, 2, 16)
