"""The models of bnn.models, in a state like a trained one's: the packed network answers like PyTorch's."""

import pytest
import torch
from model_configs import CASES, METHODS, NAMES, SLOW, build, small_shape

import bnn
from bnn.models.trained_like import trained_like

# The float stem feeds signs in each model, so a float within rounding of a threshold may turn an answer.

# Stems of the same layers as others'.
SLOW_STEMS = SLOW | {"real_to_binary", "ds_cnn", "reactnet_a"}


def report_of(network, shape, count, statistics, batch_size):
    trained_like(network, torch.randn(statistics, *shape))
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    packed = bnn.convert(network, x)
    return bnn.check_parity(network, packed, x, batch_size), packed


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("name", CASES)
def test_small_models(name):
    torch.manual_seed(0)
    network = build(name, METHODS[name], narrow=0.2)
    shape = small_shape(network)
    if shape[1] > 64:
        network = build(name, METHODS[name], narrow=0.05)
    report, _ = report_of(network, shape, 24, 32, 24)
    assert report.first_difference is None, str(report)
    assert report.agreement >= 0.9, str(report)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_STEMS else n for n in NAMES if "_cifar" not in n]
)
def test_stems_of_pixels(name):
    """8-bit stems are exact layers on bytes, whatever the model; alternately, float stems with the table of pixels."""
    torch.manual_seed(0)
    shape = small_shape(build(name, METHODS[name], narrow=0.2))
    network = build(name, METHODS[name], narrow=0.2 if shape[1] <= 64 else 0.05, stem="int8")
    bnn.set_pixels(network, bnn.Pixels([0.48, 0.45, 0.4][: shape[0]], [0.23, 0.22, 0.22][: shape[0]]))
    x = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    network.train()(x)
    trained_like(network, x)
    packed = bnn.convert(network, x)
    assert (packed.steps[0].op, packed.steps[0].inputs[0]) == ("binary_conv", "x")
    assert packed.costs()[0].precision == "W8A8"
    report = bnn.check_parity(network, packed, x)
    assert report.first_difference is None, str(report)
    # Nothing before the first signs is a float of another order: all levels are PyTorch's, also when both run freely.
    assert report.free.different_levels == 0 or name == "resnet20", str(report)
    assert report.agreement == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whole_models(name):
    torch.manual_seed(0)
    network = build(name, METHODS[name])
    shape = network.input_shape
    large = shape[1] > 100
    report, packed = report_of(network, shape, 200 if large else 2000, 32 if large else 256, 20 if large else 200)
    free = report.free.first_difference
    text = f"{name}: {packed.nbytes:,} bytes, agreement {report.agreement:.2%}, {report.free.different_levels:,} levels"
    where = "" if free is None else f", first {free.different} at {free.source}, {free.explained} within rounding"
    print(f"{text} differ{where}, floats by {report.largest_relative_difference:.1e}")
    assert report.first_difference is None, str(report)
    assert report.agreement >= 0.995, str(report)
    assert free is None or free.different == free.explained, str(report)
