"""The gallery shows every quantizer, by its own values and gradients."""

import inspect

import numpy as np
import torch

from bnn import quantizers
from bnn.quantizers import FullPrecision, Quantizer, SteSign, TernaryWeight
from paper_figures import quantizer_gallery
from paper_figures.quantizer_gallery import PANELS, curves


def test_every_quantizer_has_a_panel():
    classes = {c for _, c in inspect.getmembers(quantizers, inspect.isclass) if issubclass(c, Quantizer)}
    shown = {type(make()) for panel in PANELS for make in panel.variants}
    assert shown == classes - {Quantizer, FullPrecision}


def test_curves_are_those_of_the_quantizer():
    x, y, gradient = curves(SteSign(clip=0.5))
    assert (x[0], x[-1], len(x)) == (-2, 2, 401)
    np.testing.assert_array_equal(y, np.where(x >= 0, 1, -1))
    np.testing.assert_array_equal(gradient, np.abs(x) <= 0.5)
    x, y, gradient = curves(TernaryWeight())  # values of all weights together, the gradient each weight's own
    delta = 0.7 * np.abs(x).mean()
    alpha = np.abs(x[np.abs(x) > delta]).mean()
    np.testing.assert_allclose(y, alpha * np.sign(x) * (np.abs(x) > delta))
    np.testing.assert_array_equal(gradient, 1)


def test_the_picture_is_written_and_the_seed_of_others_stays(tmp_path):
    picture = tmp_path / "gallery.png"
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    quantizer_gallery.main(["--output", str(picture)])
    assert picture.stat().st_size > 50_000
    assert torch.equal(torch.rand(2), expected)
