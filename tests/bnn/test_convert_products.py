"""Products of two values of few levels, as scores and values of binary attention, run on bits and are exact."""

import numpy as np
import pytest
import torch
from conversion import check
from torch import nn

import bnn

HEADS, TOKENS, WIDTH = 2, 7, 36


def signs(x):
    return torch.where(x >= 0, 1.0, -1.0)


def rounded(levels, step):
    return lambda x: (x / step).round().clamp(0, levels) * step


def dynamic(x):
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127) / scale


def with_zero_point(x, axis=-1):
    """Four bits between the ends of each token, or of each feature (-2); the zero point is a whole number."""
    low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 15) - zero) * scale


def lsq_plus(x, step=0.11, offset=-0.37):
    return ((x - offset) / step).round().clamp(0, 15) * step + offset


def around_the_mean(x):
    mean = x.mean(-1, keepdim=True)
    return torch.where(x > mean, 0.5, -0.5) + mean


class Attention(nn.Module):
    """Scores of what q makes of queries and keys, and what p makes of their softmax times what v makes of values."""

    def __init__(self, q, p, v, fold=False):
        super().__init__()
        self.q, self.p, self.v, self.fold = q, p, v, fold
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        n, tokens, width = x.shape
        parts = self.project(x).reshape(n, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = self.q(parts[0]), self.q(parts[1]), self.v(parts[2])
        if self.fold:
            q, k, v = (part.reshape(n * HEADS, tokens, -1) for part in (q, k, v))
        scores = torch.softmax(q @ k.transpose(-2, -1) / 6, -1)
        mixed = (self.p(scores) @ v).reshape(n, HEADS, tokens, -1)
        return mixed.transpose(1, 2).reshape(n, tokens, width)


# What is made of queries and keys, of the softmax and of values; planes of both products.
KINDS = {
    "BiBERT": (signs, lambda x: (x > 0.12).float(), signs, ["A1A1", "A1A1"]),
    "BiT": (lambda x: 0.7 * signs(x - 0.1), rounded(1, 0.3), lambda x: 1.3 * signs(x), ["A1A1", "A1A1"]),
    "ternary": (lambda x: (x > 0.3).float() - (x < -0.3).float(), rounded(3, 0.1), signs, ["A2A2", "A2A1"]),
    "of 4 bits": (lambda x: (x * 4).round().clamp(-8, 7) / 4, rounded(15, 1 / 15), rounded(15, 0.1), ["A4A4", "A4A4"]),
    "scales of tokens": (dynamic, rounded(255, 1 / 255), signs, ["A8A8", "A8A1"]),
    "zero points": (with_zero_point, rounded(15, 1 / 15), lambda x: with_zero_point(x, -2), ["A4A4"] * 2),
    "offsets": (lsq_plus, lambda x: (x * 15).round() / 15, lsq_plus, ["A4A4"] * 2),
    "offsets and zero points": (around_the_mean, rounded(3, 0.3), lsq_plus, ["A1A1", "A2A4"]),
    "scales of heads": (
        lambda x: signs(x) * torch.tensor([0.5, 0.7]).reshape(-1, 1, 1),
        rounded(1, 0.3),
        lambda x: signs(x) * x.abs().mean(-2, keepdim=True),
        ["A1A1", "A1A1"],
    ),
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", KINDS)
def test_attention_of_few_levels(name):
    torch.manual_seed(0)
    *quantizers, planes = KINDS[name]
    packed, report = check(nn.Sequential(Attention(*quantizers), nn.Flatten()).eval(), torch.randn(4, TOKENS, WIDTH))
    steps = [cost.precision for cost in packed.costs() if cost.op == "level_matmul"]
    assert steps == planes
    assert report.first_difference is None


def test_products_are_the_very_numbers_of_pytorch():
    class Products(nn.Module):
        def forward(self, x):
            left, right = signs(x), (x.roll(1, -1) * 2).round().clamp(-2, 1)
            square = left @ right.transpose(-1, -2)
            return square, torch.einsum("nhtc,nhtd->nhcd", left, right), right[:, :1] @ left.transpose(-1, -2)

    for shape in ((2, 3, 5, 7), (3, 1, 64, 65), (2, 2, 3, 129)):
        x = torch.randn(shape)
        packed = bnn.convert(Products().eval(), x[:1])
        assert [step.op for step in packed.steps if "matmul" in step.op] == ["level_matmul"] * 3
        for ours, theirs in zip(packed(x.numpy()), Products()(x), strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())


def test_products_with_zero_points_are_the_very_numbers_of_pytorch():
    """Whole zero points of each token on both sides, and scales that are powers of two."""

    def levels(x, step):
        zero = (x.mean(-1, keepdim=True) * 4).round()
        scale = torch.where(x.amax(-1, keepdim=True) > 2, 2.0, 0.5)
        return (((x / step).round() + zero).clamp(0, 15) - zero) * scale

    class Product(nn.Module):
        def forward(self, x):
            left, right = levels(x, 0.5), levels(x.roll(1, -1), 0.25)
            return left @ right.transpose(-1, -2), left @ lsq_plus(x, 0.125, -0.3125).transpose(-1, -2)

    for shape in ((2, 3, 5, 7), (2, 1, 40, 65), (2, 2, 3, 129)):
        x = torch.randn(shape)
        packed = bnn.convert(Product().eval(), x[:1])
        assert [step.op for step in packed.steps if "matmul" in step.op] == ["level_matmul"] * 2
        for ours, theirs in zip(packed(x.numpy()), Product()(x), strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())


def test_heads_in_the_batch():
    torch.manual_seed(0)
    network = Attention(signs, lambda x: x, signs, fold=True)
    packed, _ = check(network.eval(), torch.randn(4, TOKENS, WIDTH))
    assert [step.op for step in packed.steps if "matmul" in step.op] == ["level_matmul", "matmul"]


def test_floats_on_one_side_stay_floats():
    torch.manual_seed(0)
    for q, v in ((lambda x: x, signs), (lambda x: x * signs(x.flip(-1)), lambda x: x)):
        packed, _ = check(Attention(q, lambda x: x, v).eval(), torch.randn(4, TOKENS, WIDTH))
        assert [step.op for step in packed.steps if "matmul" in step.op] == ["matmul"] * 2


def test_products_on_bits_are_explained():
    found = bnn.converter.explain(Attention(signs, rounded(3, 0.3), signs).eval(), torch.randn(1, TOKENS, WIDTH))
    assert [(layer.weight_bits, layer.input_bits, layer.on_bits) for layer in found.layers[1:]] == [
        (1, 1, True),
        (2, 1, True),
    ]
