"""Functions of sixteen float32 that are made of exp: the logistic function, tanh, erf, GELU and their kind.

To a few units in the last place. exp(x) = 2**k exp(r) with a whole number k and |r| <= log(2) / 2, and the polynomials
of exp and of tanh at small numbers are those of Cephes (S. Moshier), expf and tanhf. The others are least maximum
fits: erf(x) / x - 1 in x**2 up to 1, log(1 - erf(x)) from 1 to 4, and log(1 + e) / (2 z) - 1 in z**2, z = e / (2 + e).
"""

import math
from collections.abc import Callable, Sequence
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
_ERF = (7.88911930e-5, -8.02084105e-4, 5.18953521e-3, -2.68544443e-2, 0.112836003, -0.376126260, 0.128379167)
_LOG_ERFC = (1.85574900e-4, -2.93961563e-3, 2.18053516e-2, -0.103037432, -0.638225615, -1.12704003, -3.53708921e-4)
_LOG1P = (0.140122324, 0.139995694, 0.200108498, 0.333332062)
# exp of larger numbers is beyond float32; tanh of such a number is 1, and so is erf.
_LARGEST, _LARGEST_OF_TANH, _LARGEST_OF_ERF, _SMALL = 87.0, 10.0, 4.0, 0.625


class _Lanes:
    """Arithmetic and functions in all lanes. builder: of the code that is emitted."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        self._multiply_add = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

    @staticmethod
    def same(number: float) -> ir.Constant:
        return ir.Constant(_VECTOR, [number] * LANES)

    def multiply(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        return self.builder.fmul(a, self.same(b) if isinstance(b, float) else b)

    def add(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        return self.builder.fadd(a, self.same(b) if isinstance(b, float) else b)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.builder.call(self._multiply_add, [a, b, c])

    def negative(self, x: ir.Value) -> ir.Value:
        return self.builder.fsub(self.same(-0.0), x)

    def size(self, x: ir.Value) -> ir.Value:
        return self._bits(x, "and_", 0x7FFFFFFF)

    def with_sign_of(self, y: ir.Value, x: ir.Value) -> ir.Value:
        sign = self.builder.bitcast(self._bits(x, "and_", 1 << 31), _WHOLE)
        return self.builder.bitcast(self.builder.or_(self.builder.bitcast(y, _WHOLE), sign), _VECTOR)

    def _bits(self, x: ir.Value, operation: str, number: int) -> ir.Value:
        whole = getattr(self.builder, operation)(self.builder.bitcast(x, _WHOLE), ir.Constant(_WHOLE, [number] * LANES))
        return self.builder.bitcast(whole, _VECTOR)

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        y: ir.Value = self.same(coefficients[0])
        for coefficient in coefficients[1:]:
            y = self.multiply_add(y, x, self.same(coefficient))
        return y

    def where_below(self, x: ir.Value, bound: float, yes: ir.Value, no: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.fcmp_ordered("<", x, self.same(bound)), yes, no)

    def unless_nan(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.fcmp_unordered("uno", x, x), x, y)

    def at_least(self, x: ir.Value, low: float) -> ir.Value:
        return self.where_below(x, low, self.same(low), x)

    def clamped(self, x: ir.Value, low: float, high: float) -> ir.Value:
        x = self.at_least(x, low)
        return self.builder.select(self.builder.fcmp_ordered(">", x, self.same(high)), self.same(high), x)

    def exp(self, x: ir.Value) -> ir.Value:
        """Return exp(x) for |x| <= 87."""
        b = self.builder
        shifted = self.multiply_add(x, self.same(_LOG2E), self.same(_MAGIC))
        k = b.fsub(shifted, self.same(_MAGIC))
        r = self.multiply_add(k, self.same(-_LOG2_LOW), self.multiply_add(k, self.same(-_LOG2_HIGH), x))
        y = self.multiply_add(self.polynomial(r, _EXP), b.fmul(r, r), b.fadd(r, self.same(1.0)))
        exponent = b.shl(b.bitcast(shifted, _WHOLE), ir.Constant(_WHOLE, [23] * LANES))
        return b.bitcast(b.add(b.bitcast(y, _WHOLE), exponent), _VECTOR)

    def exp_of_negative(self, x: ir.Value) -> ir.Value:
        """Return exp(x) for x <= 0; 0 instead of what float32 has no full precision for, which CPUs are slow with."""
        power = self.exp(self.at_least(x, -_LARGEST))
        return self.unless_nan(x, self.where_below(x, -_LARGEST, self.same(0.0), power))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        power = self.exp(self.clamped(self.negative(x), -_LARGEST, _LARGEST))
        return self.unless_nan(x, self.builder.fdiv(self.same(1.0), self.add(power, 1.0)))

    def tanh(self, x: ir.Value) -> ir.Value:
        b, given = self.builder, x
        x = self.clamped(x, -_LARGEST_OF_TANH, _LARGEST_OF_TANH)
        large = b.fsub(self.same(1.0), b.fdiv(self.same(2.0), self.add(self.exp(self.multiply(x, 2.0)), 1.0)))
        square = self.multiply(x, x)
        small = self.multiply_add(self.polynomial(square, _TANH), self.multiply(square, x), x)
        return self.unless_nan(given, self.where_below(square, _SMALL**2, small, large))

    def erf(self, x: ir.Value) -> ir.Value:
        size = self.clamped(self.size(x), 0.0, _LARGEST_OF_ERF)
        square = self.multiply(size, size)
        small = self.multiply_add(self.polynomial(square, _ERF), size, size)
        large = self.builder.fsub(self.same(1.0), self.exp(self.polynomial(size, _LOG_ERFC)))
        return self.unless_nan(x, self.with_sign_of(self.where_below(size, 1.0, small, large), x))

    def log1p(self, e: ir.Value) -> ir.Value:
        """Return log(1 + e) for 0 <= e <= 1."""
        z = self.builder.fdiv(e, self.add(e, 2.0))
        square, twice = self.multiply(z, z), self.multiply(z, 2.0)
        return self.multiply_add(self.multiply(self.polynomial(square, _LOG1P), square), twice, twice)

    def hard_sigmoid(self, x: ir.Value) -> ir.Value:
        return self.builder.fdiv(self.clamped(self.add(x, 3.0), 0.0, 6.0), self.same(6.0))

    def silu(self, x: ir.Value) -> ir.Value:
        return self.multiply(x, self.sigmoid(x))

    def hard_swish(self, x: ir.Value) -> ir.Value:
        return self.multiply(x, self.hard_sigmoid(x))

    def gelu(self, x: ir.Value) -> ir.Value:
        return self.multiply(self.multiply(x, 0.5), self.add(self.erf(self.multiply(x, math.sqrt(0.5))), 1.0))

    def gelu_tanh(self, x: ir.Value) -> ir.Value:
        cube = self.multiply(self.multiply(x, x), x)
        inner = self.multiply(self.add(x, self.multiply(cube, 0.044715)), math.sqrt(2 / math.pi))
        return self.multiply(self.multiply(x, 0.5), self.add(self.tanh(inner), 1.0))

    def elu(self, x: ir.Value) -> ir.Value:
        """Return x, or exp(x) - 1 = 2 t / (1 - t) with t = tanh(x / 2) where it is negative."""
        half = self.tanh(self.multiply(x, 0.5))
        negative = self.builder.fdiv(self.multiply(half, 2.0), self.builder.fsub(self.same(1.0), half))
        return self.where_below(x, 0.0, negative, x)

    def softplus(self, x: ir.Value) -> ir.Value:
        positive = self.where_below(x, 0.0, self.same(0.0), x)
        return self.add(positive, self.log1p(self.exp_of_negative(self.negative(self.size(x)))))

    def mish(self, x: ir.Value) -> ir.Value:
        """Return x tanh(log(1 + e)) = x n / (n + 2) with e = exp(x) and n = e (e + 2)."""
        e = self.exp(self.clamped(x, -_LARGEST, _LARGEST / 4))
        n = self.multiply(e, self.add(e, 2.0))
        return self.unless_nan(x, self.multiply(x, self.builder.fdiv(n, self.add(n, 2.0))))


def _lanewise(function: Callable[[_Lanes, ir.Value], ir.Value], meaning: str) -> Any:
    def operation(typing, x):
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return function(_Lanes(builder), args[0])

        return float32x16(float32x16), emit

    operation.__doc__ = f"{meaning}, lane by lane; NaN stays NaN."
    operation.__name__ = operation.__qualname__ = function.__name__
    return intrinsic(operation)


exp_of_negative = _lanewise(_Lanes.exp_of_negative, "exp(x) for x <= 0, and 0 where that is below 1.7e-38")
sigmoid = _lanewise(_Lanes.sigmoid, "1 / (1 + exp(-x))")
tanh = _lanewise(_Lanes.tanh, "tanh(x)")
hard_sigmoid = _lanewise(_Lanes.hard_sigmoid, "min(max(x + 3, 0), 6) / 6")
silu = _lanewise(_Lanes.silu, "x sigmoid(x)")
hard_swish = _lanewise(_Lanes.hard_swish, "x min(max(x + 3, 0), 6) / 6")
gelu = _lanewise(_Lanes.gelu, "x (1 + erf(x / sqrt(2))) / 2")
gelu_tanh = _lanewise(_Lanes.gelu_tanh, "x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2")
elu = _lanewise(_Lanes.elu, "x, or exp(x) - 1 where that is negative")
softplus = _lanewise(_Lanes.softplus, "log(1 + exp(x))")
mish = _lanewise(_Lanes.mish, "x tanh(softplus(x))")
