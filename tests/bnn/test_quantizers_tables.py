"""Values and gradients of every quantizer by hand, at 0, -0.0, +-1, thresholds and beyond, in float64."""

import inspect

import numpy as np
import pytest
import torch
from gradients import gradient

from bnn import quantizers as q
from bnn.quantizers import FullPrecision, Quantizer

X = [-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]  # as one filter: mean|W| = 0.875
SIGNS = np.array([-1, -1, -1, 1, 1, 1, 1, 1])
INSIDE = np.array([0, 1, 1, 1, 1, 1, 1, 0])
ONES = np.ones(8)
THIRD = 2 / 3
STEP = 0.6745 * 2 / 3  # LQ-Net's first basis of two bits: STEP, 2 STEP


def even(outer, one, half, zero):
    """A table that is the same for x and -x, of what it holds at 2, 1, 0.5 and 0."""
    return np.array([outer, one, half, zero, zero, half, one, outer])


def odd(outer, one, half):
    """A table of an odd function, of what it holds at 2, 1 and 0.5."""
    return np.array([-outer, -one, -half, 0, 0, half, one, outer])


# class, what its constructor takes, learned values and buffers, q(X), dq/dX for an upstream gradient of 1 everywhere
TABLES = [
    (q.SteSign, {}, {}, SIGNS, INSIDE),
    (q.SteSign, {"boundary": "open"}, {}, SIGNS, even(0, 0, 1, 1)),
    (q.SteSign, {"clip": 0.5}, {}, SIGNS, even(0, 0, 1, 1)),
    (q.SteSign, {"clip": None}, {}, SIGNS, ONES),
    (q.StochasticSign, {}, {}, SIGNS, INSIDE),
    (q.ApproxSign, {}, {}, SIGNS, even(0, 0, 1, 2)),
    (q.SwishSign, {"beta": 1.0}, {}, SIGNS, even(0.100124, 0.604732, 0.882458, 1)),
    (q.EdeSign, {"t": 1.0}, {}, SIGNS, even(0.070651, 0.419974, 0.786448, 1)),
    (q.EdeSign, {"t": 0.5}, {}, SIGNS, even(0.419974, 0.786448, 0.940015, 1)),  # k = 2
    (q.RbnnSign, {"t": 1.0}, {}, SIGNS, even(0, 0.414214, 0.914214, 1.414214)),
    (q.RSign, {"channels": 1}, {"shift": 0.5}, [-1, -1, -1, -1, -1, 1, 1, 1], [0, 0, 0, 1, 1, 2, 1, 0]),
    (q.RecuSign, {}, {}, SIGNS, even(0, 0, 1, 2)),
    (q.FdaSign, {"n": 0, "frequency": 1.0}, {}, SIGNS, even(0, 0.687934, 1.117373, 1.273240)),
    (q.NoiseAdaptedSign, {"channels": 1, "n": 0, "frequency": 1.0}, {}, SIGNS, even(0, 0.687934, 1.117373, 1.273240)),
    (q.AdaBinActivation, {}, {"alpha": 2.0, "beta": 0.0}, 2 * SIGNS, even(0, 1, 1.5, 2)),
    (q.AdaBinActivation, {}, {"alpha": 1.0, "beta": 0.5}, [-0.5] * 5 + [1.5] * 3, [0, 0, 0, 1, 1, 2, 1, 0]),
    (q.ProgressiveSign, {}, {}, SIGNS, ONES),
    # weights of one bit
    (q.BinaryConnect, {}, {}, SIGNS, ONES),
    (q.XnorWeight, {}, {}, 0.875 * SIGNS, 0.25 * SIGNS + 0.875 * INSIDE),  # the signs' sum is 2, of 8
    (q.XnorWeight, {"gradient": "printed"}, {}, 0.875 * SIGNS, 0.875 * INSIDE + 0.125),
    (q.XnorWeight, {"gradient": "released"}, {}, 0.875 * SIGNS, even(0.109375, 0.109375, 0.875, 0.875)),
    (q.MagnitudeAwareSign, {}, {}, 0.875 * SIGNS, 0.875 * INSIDE),
    (q.MagnitudeAwareSign, {"gradient": "released"}, {}, 0.875 * SIGNS, INSIDE),
    (q.LearnedScaleWeight, {"channels": 1}, {"alpha": -0.5}, -0.5 * SIGNS, -0.5 * INSIDE),
    # three values
    (q.TernaryWeight, {}, {}, odd(1.5, 1.5, 0), ONES),
    (q.TernaryWeight, {"factor": 0.5}, {}, odd(3.5 / 3, 3.5 / 3, 3.5 / 3), ONES),
    (q.TrainedTernary, {"t": 0.5}, {"wp": 3.0, "wn": 2.0}, [-2, 0, 0, 0, 0, 0, 0, 3], [2, 1, 1, 1, 1, 1, 1, 3]),
    (q.AbsmeanTernary, {}, {}, odd(0.875, 0.875, 0.875), ONES),
    (q.TernaryActivation, {"threshold": 0.5}, {}, odd(1, 1, 0), INSIDE),
    (q.TernaryActivation, {"threshold": 1.0}, {}, odd(1, 0, 0), INSIDE),
    # few bits; 1.5 and 63.5 steps are rounded to the even number
    (q.DoReFaWeight, {"bits": 1}, {}, 0.875 * SIGNS, ONES),
    (q.DoReFaActivation, {"bits": 2}, {}, [0, 0, 0, 0, 0, THIRD, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0]),
    (q.Pact, {"bits": 2}, {"alpha": 1.0}, [0, 0, 0, 0, 0, THIRD, 1, 1], [0, 0, 0, 0, 0, 1, 0, 0]),
    (q.LsqWeight, {"bits": 2}, {"step": 0.5}, [-1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5], [0, 0, 1, 1, 1, 0, 0, 0]),
    (q.LsqWeight, {"bits": 1}, {"step": 0.5}, 0.5 * SIGNS, even(0, 0, 0, 1)),
    (q.LsqActivation, {"bits": 2}, {"step": 0.5}, [0, 0, 0, 0, 0, 0.5, 1, 1.5], [0, 0, 0, 0, 0, 1, 1, 0]),
    (q.LqWeight, {"bits": 2, "channels": 1}, {}, [-1, -1, -1, 1, 1, 1, 1, 3], ONES),
    (q.LqActivation, {"bits": 2}, {}, [0, 0, 0, 0, 0, STEP, 2 * STEP, 3 * STEP], [1, 1, 1, 1, 1, 1, 1, 0]),
    (q.AbcWeight, {"bases": 1}, {}, 0.875 * SIGNS, 0.875 * ONES),
    (q.AbcActivation, {"bases": 1}, {"shift": 0.0}, [-1, -1, -1, -1, -1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0]),
    (q.AbsmaxActivation, {}, {}, odd(2, 128 / 127, 64 / 127), ONES),
]
# Those whose gradient runs through statistics of the filter: finite differences in test_quantizers_binary_weights.py.
THROUGH_STATISTICS = {q.LibraWeight, q.AdaBinWeight, q.RecuWeight, q.RotatedWeight}


@pytest.mark.parametrize(("make", "options", "learned", "values", "slopes"), TABLES)
def test_values_and_gradients_are_those_of_the_table(make, options, learned, values, slopes):
    quantizer = make(**options).double().eval()
    with torch.no_grad():
        for name, value in learned.items():
            getattr(quantizer, name).fill_(value)
    # One filter or sample, or eight samples for what has its channels on axis 1.
    row = np.array(X).reshape((8, 1) if make in (q.RSign, q.NoiseAdaptedSign) else (1, 8))
    found = quantizer(torch.tensor(row)).detach().numpy().ravel()
    np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(gradient(quantizer, row, 1.0).ravel(), slopes, rtol=0, atol=1e-6)


def test_every_quantizer_has_a_table():
    classes = {c for _, c in inspect.getmembers(q, inspect.isclass) if issubclass(c, Quantizer)}
    assert {table[0] for table in TABLES} == classes - {Quantizer, FullPrecision} - THROUGH_STATISTICS
