"""Values and gradients of every quantizer by hand, at 0, -0.0, +-1, thresholds and beyond, in float64.

The numbers stand in the classes' descriptions.
"""

import inspect

import numpy as np
import pytest
import torch
from gradients import gradient

from bnn import quantizers
from bnn.quantizers import FullPrecision, Quantizer
from bnn.quantizers.description import EXAMPLE_INPUTS, GROUPS, Description, describe, described
from paper_figures.quantizer_gallery import build

EXAMPLES = [
    pytest.param(cls, example, id=f"{cls.__name__}-{i}")
    for cls in described(quantizers)
    for i, example in enumerate(describe(cls).examples)
]


@pytest.mark.parametrize(("cls", "example"), EXAMPLES)
def test_values_and_gradients_are_those_worked_out_by_hand(cls, example):
    row = np.array([EXAMPLE_INPUTS])
    quantizer = build(cls, example.options, example.learned, row.size).double().eval()
    slopes = gradient(quantizer, row, 1.0)
    found = quantizer(torch.tensor(row)).detach().numpy()
    np.testing.assert_allclose(found, [example.values], rtol=1e-6, atol=1e-12)
    if example.gradient is not None:  # those None: finite differences in test_quantizers_binary_weights.py
        np.testing.assert_allclose(slopes, [example.gradient], rtol=0, atol=1e-6)


def test_every_quantizer_is_described_with_an_example():
    classes = {c for _, c in inspect.getmembers(quantizers, inspect.isclass) if issubclass(c, Quantizer)}
    assert set(described(quantizers)) == classes - {Quantizer, FullPrecision}
    for cls in described(quantizers):
        assert describe(cls).examples, cls


def test_descriptions_are_sorted_and_not_inherited():
    class Inherits(quantizers.SteSign):
        pass

    assert describe(quantizers.SteSign) is not None
    assert describe(Inherits) is None
    order = [(GROUPS.index(d.group), d.year or 9999) for d in map(describe, described(quantizers))]
    assert order == sorted(order)
    with pytest.raises(ValueError, match="group must be one of"):
        Description("Sparse", "a", 2026, "x", "1", ())
