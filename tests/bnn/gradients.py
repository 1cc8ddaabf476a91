"""Gradients for the tests of quantizers: what autograd gives, and what finite differences of a formula give."""

import math

import numpy as np
import torch


def gradient(quantizer, x, g):
    """dC/dx of a quantizer in float64 for an upstream gradient g; parameters keep theirs in .grad."""
    x = torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
    quantizer(x).backward(torch.tensor(np.asarray(g), dtype=torch.float64).expand(x.shape))
    return x.grad.numpy()


def differences(function, x, step=1e-6):
    """Central differences of a scalar function of an array, one element after another."""
    x = np.asarray(x, dtype=np.float64)
    result = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        at = np.zeros_like(x)
        at[i] = step
        result[i] = (function(x + at) - function(x - at)) / (2 * step)
    return result


def quadratic(x):
    """Bi-Real Net's approximation of sign."""
    if abs(x) >= 1:
        return np.sign(x)
    return 2 * x + x * x if x < 0 else 2 * x - x * x


def ramp(x, t):
    """RBNN's approximation, with its plateau."""
    k, x = max(1 / t, 1), min(max(x, -math.sqrt(2) / t), math.sqrt(2) / t)
    return k * (math.sqrt(2) * t * x - math.copysign(t * t * x * x / 2, x))


def signs(x):
    return np.where(np.asarray(x) >= 0, 1.0, -1.0)
