"""Whole networks whose levels are bytes between layers, against the same networks that count the bits of planes."""

from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels.ops.packed_layers import choice
from conversion import images, upset
from torch import nn

import bnn
from bnn.layers import QuantConv2d, QuantLinear
from bnn.quantizers import DoReFaActivation, LsqActivation, LsqWeight, Pact, TernaryWeight, XnorWeight


class Residual(nn.Module):
    """A block and its input, which two layers read."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return x + self.block(x)


def inputs_of(rng):
    bits = int(rng.integers(2, 9))
    kinds = (partial(LsqActivation, bits, signed=bool(rng.integers(2))), partial(DoReFaActivation, bits))
    return rng.choice([*kinds, partial(Pact, bits, alpha=2.0)])


def weights_of(rng):
    return rng.choice([*(partial(LsqWeight, int(b)) for b in rng.integers(2, 9, 3)), TernaryWeight, XnorWeight])


def convolution(rng, channels, filters, stride=1, groups=1):
    """A quantized convolution that keeps the size of its map if its stride is 1."""
    kernel, dilation = int(rng.choice([1, 3, 5])), int(rng.integers(1, 3))
    return QuantConv2d(
        channels, filters, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=bool(rng.integers(2)),
        weight_quantizer=weights_of(rng), input_quantizer=inputs_of(rng),
    )  # fmt: skip


def network(rng):
    """Up to five blocks, some of them depthwise, with a residual, a pooling or a stride; then a linear layer."""
    channels = int(rng.choice([8, 12, 20, 33]))
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)]
    for _ in range(rng.integers(2, 6)):
        kind = rng.choice(["plain", "depthwise", "residual", "pool", "stride"])
        filters = channels if kind in ("depthwise", "residual") else int(rng.choice([8, 12, 20, 33]))
        groups = channels if kind == "depthwise" else 1
        block = [
            convolution(rng, channels, filters, 2 if kind == "stride" else 1, groups),
            nn.BatchNorm2d(filters),
            *rng.choice([nn.ReLU(), nn.Hardtanh(), nn.PReLU(filters), nn.Identity()], rng.integers(2), replace=False),
        ]
        layers += [Residual(nn.Sequential(*block))] if kind == "residual" else block
        if kind == "pool":
            layers.append(nn.MaxPool2d(2, 1))
        channels = filters
    linear = partial(QuantLinear, weight_quantizer=weights_of(rng), input_quantizer=inputs_of(rng))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), linear(4 * channels, 5))


@pytest.mark.slow
def test_bytes_give_what_planes_do(tmp_path):
    """Forty random networks, every call a new one, recorded and played back, of one image and of several."""
    file, registers = tmp_path / "model.safetensors", 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        model = network(rng)
        x = images(4, 3, 10, 9)
        model.train()(x)
        bnn.convert(upset(model), x).save(file)
        answers = []
        for sums in choice.SUMS:
            with choice.force(sums):
                packed = bk.load(file)
                answers.append([packed(batch) for batch in (x.numpy(), x[:1].numpy()) for _ in range(3)])
                written = [spec.as_bytes for cost in packed.costs() for spec in cost.outputs]
                registers += sum(written)
                assert sums == "products" or not any(written)
        for bits, products in zip(*answers, strict=True):
            np.testing.assert_array_equal(products, bits, f"seed {seed}")
    assert registers >= 40
