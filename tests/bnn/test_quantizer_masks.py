"""Arithmetic with masks beside the obvious way to write it."""

import pytest
import torch

from bnn.quantizers.masks import as_numbers, between, masked, or_nan

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, torch.nan, torch.inf, -torch.inf, 1e30, 1e-40]


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
def x(request):
    """Numbers of a map, its channels last, with special ones among them."""
    numbers = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    numbers.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return numbers.to(request.param, memory_format=torch.channels_last)


def same(one, other):
    """Bit for bit, but for the bits of a NaN."""
    assert one.dtype == other.dtype and one.shape == other.shape
    return torch.equal(one.nan_to_num(7), other.nan_to_num(7)) and torch.equal(one.isnan(), other.isnan())


def test_a_mask_is_0_and_1(x):
    assert same(as_numbers(x > 0, x.dtype), (x > 0).to(x.dtype))
    assert as_numbers(x > 0, x.dtype).is_contiguous(memory_format=torch.channels_last)


def test_masked_is_the_product(x):
    mask = x > 0.2
    assert same(masked(x, mask), x * mask)
    assert same(masked(x.contiguous(), mask), x * mask)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 3), (-0.3, 0.7), (-8, 7)])
def test_between_takes_neither_end(x, low, high):
    g = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(x.dtype)
    place = 4 * x
    place[1, 1, 1, :2] = torch.tensor([low, high]).to(x.dtype)
    low, high = (float(torch.tensor(end).to(x.dtype)) for end in (low, high))
    assert same(between(g, place, low, high), torch.where((place > low) & (place < high) | place.isnan(), g, 0))


def test_a_nan_stays(x):
    value = torch.arange(x.numel()).reshape(x.shape).to(x.dtype) - 5
    assert same(or_nan(x, value), torch.where(x.isnan(), x, value))
