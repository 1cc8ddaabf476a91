"""The gallery shows every quantizer, by its own values and gradients."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from readable import faults, words

from bnn import quantizers
from bnn.quantizers import SteSign, TernaryWeight
from bnn.quantizers.description import GROUPS, describe, described
from paper_figures import quantizer_gallery, style
from paper_figures.quantizer_gallery import curves, variants
from paper_figures.save import save


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


FEW = 101  # points of a curve: of a quantizer of all weights, each is one gradient


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figure that the command writes, the file, and whether others' random numbers stay theirs."""
    picture, figures = tmp_path_factory.mktemp("gallery") / "gallery.png", []

    def keep(figure, output):
        figures.append(figure)
        save(figure, output)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizer_gallery, "save", keep)
        patch.setattr(quantizer_gallery, "POINTS", FEW)
        quantizer_gallery.main(["--output", str(picture)])
    return figures[0], picture, torch.equal(torch.rand(2), expected)


def test_the_picture_is_written_and_the_seed_of_others_stays(drawn):
    _, picture, same = drawn
    assert plt.imread(picture).shape[1] == 1800
    assert same


def test_the_picture_can_be_read(drawn):
    assert faults(drawn[0]) == []
    assert {group.partition(":")[0] for group in GROUPS} <= set(words(drawn[0]))


def test_every_quantizer_is_drawn(drawn, monkeypatch):
    """In evaluation and training, of what the classes' descriptions say."""
    monkeypatch.setattr(quantizer_gallery, "POINTS", FEW)
    shown = [axes for axes in drawn[0].axes if axes.lines]
    classes = described(quantizers)
    assert [axes.get_title(loc="left") for axes in shown] == [cls.__name__ for cls in classes]
    written = words(drawn[0])
    for axes, cls in zip(shown, classes, strict=True):
        text, made = describe(cls), variants(cls)
        assert f"{text.method}\n{text.panel.note}" in written
        assert len(axes.lines) == 2 * len(made) == 2 * len((text.panel.schedule or ("", (0,)))[1])
        gradient, forward = axes.lines[-2:]  # of the last variant, which is the strongest
        assert [to_rgba(line.get_color()) for line in (gradient, forward)] == [
            to_rgba(colour) for colour in (style.ORANGE, style.BLUE)
        ]
        assert [line.get_alpha() for line in (gradient, forward)] == [1, 1]
        low, high = axes.get_ylim()
        assert low <= min(forward.get_ydata()) <= max(forward.get_ydata()) <= high  # gradients may be cut, values not
        if made[-1].elementwise:
            x, y, slope = curves(made[-1])
            np.testing.assert_array_equal(forward.get_xydata(), np.stack([x, y], 1))
            np.testing.assert_array_equal(gradient.get_ydata(), slope)


@pytest.mark.parametrize("name", ["SteSing", "nowhere.SteSign", "bnn.quantizers.sign", "bnn.layers.QuantConv2d"])
def test_a_wrong_class_is_named(name, tmp_path):
    with pytest.raises(SystemExit, match=name):
        quantizer_gallery.main(["--classes", name, "--output", str(tmp_path / "gallery.png")])
