"""Whatever moves numbers, in any order, moves the same numbers in the packed network."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import check, images
from torch import nn

import bnn
from bnn.layers import QuantLinear
from bnn.quantizers import SteSign, XnorWeight

SHAPES = [(4, 6, 5), (8, 4, 4), (12,), (6, 10), (3, 2, 8)]


def permute(rng, x):
    order = list(range(1, x.ndim))
    rng.shuffle(order)
    return lambda y: y.permute(0, *order)


def cut(rng, x):
    axis, step = rng.randrange(1, x.ndim), rng.choice([1, 1, 2])
    start = rng.randrange(max(1, x.shape[axis] // 2))
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, None, step)
    return lambda y: y[tuple(index)]


def turn(rng, x):
    axis, name = rng.randrange(1, x.ndim), rng.choice(["flip", "roll", "repeat"])
    if name == "flip":
        return lambda y: y.flip(axis)
    return (lambda y: y.roll(1, axis)) if name == "roll" else lambda y: y.repeat_interleave(2, axis)


def reshape(rng, x):
    count = x[0].numel()
    first = rng.choice([d for d in range(1, count + 1) if count % d == 0])
    second = rng.choice([d for d in range(1, count // first + 1) if count // first % d == 0])
    return lambda y: y.reshape(y.shape[0], first, second, -1)


def others(rng, x):
    return rng.choice([lambda y: y.flatten(1), lambda y: F.pad(y, (1, 2))])


class Moves(nn.Module):
    def __init__(self, moves):
        super().__init__()
        self.moves = moves

    def forward(self, x):
        x = x * 2
        for move in self.moves:
            x = move(x)
        return x


@pytest.mark.parametrize("seed", range(40))
def test_moves(seed):
    rng = random.Random(seed)
    x = torch.randn(3, *SHAPES[seed % len(SHAPES)], generator=torch.Generator().manual_seed(seed))
    y, moves = x, []
    for _ in range(rng.randint(1, 4)):
        moves.append(rng.choice([permute, permute, cut, turn, reshape, others])(rng, y))
        y = moves[-1](y)
    network = Moves(moves).eval()
    packed = bnn.convert(network, x)
    for _ in range(3):  # recorded, and played back
        np.testing.assert_array_equal(packed(x.numpy()), network(x).numpy())


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("shape", [(4, 6), (6, 2, 3)])
def test_levels_of_one_row_of_a_sequence_or_map(shape, place):
    """The first row, such as a class token, is a part of the operand as it lies in memory, and not all of it."""

    class OneRow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = QuantLinear(6, 5, weight_quantizer=XnorWeight, input_quantizer=SteSign)

        def forward(self, x):
            return self.layer(x[:, place].flatten(1))

    torch.manual_seed(0)
    packed, _ = check(OneRow().eval(), images(5, *shape))
    assert "binary_linear" in [step.op for step in packed.steps]
