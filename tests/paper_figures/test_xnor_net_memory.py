"""XNOR-Net's figure 4a: the numbers that the paper prints follow from the parameters."""

import matplotlib.pyplot as plt
import pytest
import torch
from readable import faults, words
from torch import nn

from bnn.models import AlexNet
from paper_figures import xnor_net_memory
from paper_figures.xnor_net_memory import NETWORKS, plot

BY_NAME = {network.name: network for network in NETWORKS}


# AlexNet's to the paper's digits; the others are rounded there.
@pytest.mark.parametrize(
    ("name", "double", "binary"), [("AlexNet", 475.9, 7.44), ("ResNet-18", 89.2, 1.39), ("VGG-19", 1096.1, 17.13)]
)
def test_memory_follows_from_the_parameters(name, double, binary):
    network = BY_NAME[name]
    assert network.mebibytes("double precision") == pytest.approx(double, abs=0.05)
    assert network.mebibytes("binary") == pytest.approx(binary, abs=0.005)
    assert network.mebibytes("double precision") == 64 * network.mebibytes("binary")
    assert network.mebibytes("single precision") == 32 * network.mebibytes("binary")
    for ours, printed in zip((double, binary), network.paper, strict=True):
        assert ours == pytest.approx(printed, rel=0.12)


def test_parameters_are_those_of_the_networks():
    with torch.device("meta"):
        convolutions = [module for module in AlexNet().modules() if isinstance(module, nn.Conv2d)]
    assert sum(p.numel() for module in convolutions for p in module.parameters()) == BY_NAME["AlexNet"].parameters
    assert BY_NAME["VGG-19"].parameters == 143_667_240


def test_the_picture(tmp_path):
    figure = plot()
    assert faults(figure) == []
    assert {"476", "7.4", "1,096", "as the paper prints it"} <= set(words(figure))
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights[0] == [network.mebibytes("double precision") for network in NETWORKS]
    xnor_net_memory.main(["--output", str(tmp_path / "a.png")])
    assert plt.imread(tmp_path / "a.png").shape[1] == 1800
