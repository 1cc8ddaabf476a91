"""The logistic function and tanh of sixteen float32, to a few units in the last place.

exp(x) = 2**k exp(r) with a whole number k and |r| <= log(2) / 2, and polynomials, are those of Cephes (S. Moshier):
expf and, for small numbers, tanhf.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.simd.float32x16 import LANES, float32x16
from bnn_kernels.compile.simd.vectors import FLOAT, I32

_VECTOR, _WHOLE = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
# A float of this size has its whole part in its last bits.
_MAGIC = 12582912.0
_LOG2E, _LOG2_HIGH, _LOG2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
# exp of larger numbers is beyond float32, and tanh of such a number is 1.
_LARGEST, _LARGEST_OF_TANH, _SMALL = 87.0, 10.0, 0.625


class _Lanes:
    """Arithmetic in all lanes. builder: of the code that is emitted."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        self._multiply_add = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

    @staticmethod
    def same(number: float) -> ir.Constant:
        return ir.Constant(_VECTOR, [number] * LANES)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.builder.call(self._multiply_add, [a, b, c])

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        y: ir.Value = self.same(coefficients[0])
        for coefficient in coefficients[1:]:
            y = self.multiply_add(y, x, self.same(coefficient))
        return y

    def clamped(self, x: ir.Value, low: float, high: float) -> ir.Value:
        for sign, end in (("<", low), (">", high)):
            x = self.builder.select(self.builder.fcmp_ordered(sign, x, self.same(end)), self.same(end), x)
        return x

    def exp(self, x: ir.Value) -> ir.Value:
        """Return exp(x) for |x| <= 87."""
        b = self.builder
        shifted = self.multiply_add(x, self.same(_LOG2E), self.same(_MAGIC))
        k = b.fsub(shifted, self.same(_MAGIC))
        r = self.multiply_add(k, self.same(-_LOG2_LOW), self.multiply_add(k, self.same(-_LOG2_HIGH), x))
        y = self.multiply_add(self.polynomial(r, _EXP), b.fmul(r, r), b.fadd(r, self.same(1.0)))
        exponent = b.shl(b.bitcast(shifted, _WHOLE), ir.Constant(_WHOLE, [23] * LANES))
        return b.bitcast(b.add(b.bitcast(y, _WHOLE), exponent), _VECTOR)

    def unless_nan(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.fcmp_unordered("uno", x, x), x, y)


@intrinsic
def sigmoid(typing, x):
    """1 / (1 + exp(-x)), lane by lane."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = _Lanes(builder)
        one = lanes.same(1.0)
        power = lanes.exp(lanes.clamped(builder.fsub(lanes.same(-0.0), args[0]), -_LARGEST, _LARGEST))
        return lanes.unless_nan(args[0], builder.fdiv(one, builder.fadd(one, power)))

    return float32x16(float32x16), emit


@intrinsic
def tanh(typing, x):
    """tanh(x), lane by lane."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = _Lanes(builder)
        one, two = lanes.same(1.0), lanes.same(2.0)
        x = lanes.clamped(args[0], -_LARGEST_OF_TANH, _LARGEST_OF_TANH)
        power = lanes.exp(builder.fmul(x, two))
        large = builder.fsub(one, builder.fdiv(two, builder.fadd(power, one)))
        square = builder.fmul(x, x)
        small = lanes.multiply_add(lanes.polynomial(square, _TANH), builder.fmul(square, x), x)
        is_small = builder.fcmp_ordered("<", square, lanes.same(_SMALL**2))
        return lanes.unless_nan(args[0], builder.select(is_small, small, large))

    return float32x16(float32x16), emit
