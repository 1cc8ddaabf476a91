"""Weights of float layers in 16 bits: half the bytes, the very answers of the model with rounded weights."""

import copy
from functools import partial

import bnn_kernels as bk
import numpy as np
import pytest
import torch
from bnn_kernels.bits.half_floats import narrowed, widened
from torch import nn

import bnn
from bnn.layers import QuantConv2d
from bnn.quantizers import FullPrecision, SteSign, XnorWeight

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def network():
    torch.manual_seed(0)
    binary = partial(QuantConv2d, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    float_kind = partial(QuantConv2d, weight_quantizer=FullPrecision, input_quantizer=FullPrecision)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), binary(16, 16, 3), float_kind(16, 8, 1), nn.Flatten(),
        nn.Linear(128, 9),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("storage", DTYPES)
def test_a_file_holds_half_the_bytes_and_answers_like_rounded_weights(network, storage, tmp_path):
    x = torch.randn(5, 3, 8, 8)
    before = copy.deepcopy(network.state_dict())
    whole, packed = bnn.convert(network, x), bnn.convert(network, x, float_storage=storage)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    floats = sum(network[i].weight.numel() for i in (0, 3, 5))
    assert whole.nbytes - packed.nbytes == 2 * floats
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for i in (0, 3, 5):
            rounded[i].weight.copy_(rounded[i].weight.to(DTYPES[storage]).float())
    expected = packed(x.numpy())
    np.testing.assert_array_equal(bnn.convert(rounded, x)(x.numpy()), expected)
    assert not np.array_equal(whole(x.numpy()), expected)
    assert bnn.check_parity(network, packed, x).ok
    sizes = {}
    for name, model in (("whole", whole), ("half", packed)):
        model.save(tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    assert abs(sizes["whole"] - sizes["half"] - 2 * floats) < 256  # the headers differ
    again = bk.load(tmp_path / "half")
    np.testing.assert_array_equal(again(x.numpy()), expected)
    assert again.nbytes == packed.nbytes
    assert bnn.check_parity(network, again, x).ok


def test_an_embedding_is_stored_so_too(tmp_path):
    torch.manual_seed(0)
    model, tokens = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3)).eval(), torch.randint(0, 11, (2, 5))
    packed = bnn.convert(model, tokens, float_storage="bfloat16")
    packed.save(tmp_path / "m")
    loaded = bk.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded(tokens.numpy()), packed(tokens.numpy()))
    assert loaded.nbytes <= bnn.convert(model, tokens).nbytes - 2 * (88 + 24)


def test_narrowing_loses_nothing():
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(3000).astype(np.float32)
    edge = np.float32([0.0, -0.0, np.inf, -np.inf, 65504.0, 2.0**-24, 3.0e38, 1e-40, -1.5])
    upper = torch.from_numpy(numbers).bfloat16().float().numpy()
    for x, kind in (
        (numbers, np.float32),
        (numbers.astype(np.float16).astype(np.float32), np.float16),
        (upper, np.uint16),
        (edge[:4], np.uint16),
        (edge, np.float32),
        (np.concatenate([upper, numbers[:1]]), np.float32),
        (np.zeros((0, 3), np.float32), np.float32),
        (np.arange(3, dtype=np.int32), np.int32),
    ):
        found = narrowed(x.reshape(-1, 1) if x.size else x)
        assert found.dtype == kind
        assert np.array_equal(widened(found).view(np.int32).ravel(), x.view(np.int32).ravel())


def test_what_cannot_be_stored(network):
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(bnn.ConversionError, match="float_storage must be one of float32, float16, bfloat16"):
        bnn.convert(network, x, float_storage="int8")
    network[0].weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(bnn.ConversionError, match=r"^0: a weight is beyond the largest float16"):
        bnn.convert(network, x, float_storage="float16")
    bnn.convert(network, x, float_storage="bfloat16")
