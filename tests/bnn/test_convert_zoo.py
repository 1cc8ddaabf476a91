"""The models of bnn.models, in a state like a trained one's: the packed network answers like PyTorch's."""

from functools import partial

import pytest
import torch

import bnn
from bnn import models
from bnn.models.trained_like import trained_like
from bnn.quantizers import RSign, SteSign, XnorWeight

XNOR = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
BINARY = {"weight_quantizer": SteSign, "input_quantizer": SteSign}
REACT = {"weight_quantizer": XnorWeight, "input_quantizer": RSign}

# name: model at the size of its paper, its input, a smaller model, its input. The float stem feeds signs in each,
# so a float within rounding of a threshold may turn an answer.
ZOO = {
    "LeNet5": (partial(models.LeNet5, **XNOR), (1, 28, 28), partial(models.LeNet5, **XNOR), (1, 28, 28)),
    "NIN": (partial(models.NIN, **XNOR), (3, 32, 32), partial(models.NIN, width=0.2, **XNOR), (3, 32, 32)),
    "VGG-small": (
        partial(models.VGGSmall, **XNOR), (3, 32, 32), partial(models.VGGSmall, width=0.2, **XNOR), (3, 32, 32)
    ),
    "BNN-VGG": (
        partial(models.BNNVGG, **BINARY), (3, 32, 32), partial(models.BNNVGG, width=0.2, **BINARY), (3, 32, 32)
    ),
    "AlexNet": (
        partial(models.AlexNet, **XNOR), (3, 224, 224),
        partial(models.AlexNet, width=0.05, **XNOR), (3, 224, 224)
    ),
    "ResNet-18": (
        partial(models.ResNet18, **XNOR), (3, 224, 224),
        partial(models.ResNet18, width=0.2, stem="cifar", **XNOR), (3, 32, 32)
    ),
    "Bi-Real-18": (
        partial(models.BiRealNet18, **XNOR), (3, 224, 224),
        partial(models.BiRealNet18, width=0.2, **XNOR), (3, 64, 64)
    ),
    "ResNet-20": (
        partial(models.ResNet20, **XNOR), (3, 32, 32), partial(models.ResNet20, **XNOR), (3, 32, 32)
    ),
    "ReActNet-A": (
        partial(models.ReActNetA, **REACT), (3, 224, 224),
        partial(models.ReActNetA, width=0.2, **REACT), (3, 64, 64)
    ),
}  # fmt: skip


def report_of(make, shape, count, statistics, batch_size):
    torch.manual_seed(0)
    network = trained_like(make(), torch.randn(statistics, *shape))
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    packed = bnn.convert(network, x)
    return bnn.check_parity(network, packed, x, batch_size), packed


@pytest.mark.parametrize("name", ZOO)
def test_small_models(name):
    _, _, make, shape = ZOO[name]
    report, _ = report_of(make, shape, 24, 32, 24)
    assert report.first_difference is None, str(report)
    assert report.agreement >= 0.9, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_whole_models(name):
    make, shape, _, _ = ZOO[name]
    large = shape[1] > 100
    report, packed = report_of(make, shape, 200 if large else 2000, 32 if large else 256, 20 if large else 200)
    free = report.free.first_difference
    text = f"{name}: {packed.nbytes:,} bytes, agreement {report.agreement:.2%}, {report.free.different_levels:,} levels"
    where = "" if free is None else f", first {free.different} at {free.source}, {free.explained} within rounding"
    print(f"{text} differ{where}, floats by {report.largest_relative_difference:.1e}")
    assert report.first_difference is None, str(report)
    assert report.agreement >= 0.995, str(report)
    assert free is None or free.different == free.explained, str(report)
