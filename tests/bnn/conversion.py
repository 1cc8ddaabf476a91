"""What the tests of conversion share: hostile batch norms, inputs, and the check that both networks answer alike."""

import bnn_kernels as bk
import numpy as np
import torch
from torch import nn

import bnn


def upset(model, seed=0):
    """Batch norms as training may leave them: falling and constant channels, tiny variances, large means."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=generator))
            module.running_var.copy_(torch.rand(n, generator=generator) * 2 + 1e-3)
            if module.affine:
                weight = torch.randn(n, generator=generator)
                weight[:: max(2, n // 4)] = 0
                module.weight.data.copy_(weight)
                module.bias.data.copy_(torch.randn(n, generator=generator) / 2)
    return model.eval()


def images(n, *shape, seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def check(model, x, tmp_path=None, tolerance=1e-4):
    """Converted, saved and loaded, the network answers as PyTorch does; returns the packed model and the report.

    x: a tensor, or a tuple of them.
    """
    packed = bnn.convert(model, x)
    report = bnn.check_parity(model, packed, x)
    assert report.ok, str(report)
    arrays = [part.numpy() for part in as_tuple(x)]
    with torch.no_grad():
        expected = as_tuple(model(*as_tuple(x)))
    found = as_tuple(packed(*arrays))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        largest = max(1, float(theirs.abs().max()))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=tolerance * largest)
    for _ in range(2):  # recorded, and played back
        for again, ours in zip(as_tuple(packed(*arrays)), found, strict=True):
            np.testing.assert_array_equal(again, ours)
    if tmp_path is not None:
        packed.save(tmp_path / "model.safetensors")
        for again, ours in zip(as_tuple(bk.load(tmp_path / "model.safetensors")(*arrays)), found, strict=True):
            np.testing.assert_array_equal(again, ours)
    return packed, report
