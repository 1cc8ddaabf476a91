"""What can be measured on one quantized tensor: flips, saturation, entropy, constant channels, distance, mismatch.

All take and return tensors and work on any device; shares lie in [0, 1].
"""

import copy

import torch
from torch import Tensor

from bnn.planes import Planes
from bnn.quantizers.base import Quantizer


def codes(planes: Planes) -> Tensor:
    """Return one integer for each element, int32: its bits of all planes. Equal codes are equal quantized values."""
    bits = torch.cat([term.bits for term in planes.terms])
    total = torch.zeros(bits.shape[1:], dtype=torch.int32, device=bits.device)
    for place, plane in enumerate(bits):
        total |= plane.to(torch.int32) << place
    return total


def flips(before: Planes, after: Planes) -> Tensor:
    """Return the mean change of integer levels as a share of their range, averaged over terms; scales do not count.

    For signs it is the share that flipped. A ternary value that becomes or ceases to be 0 counts half, a step of one
    in k bits 1 / (2^k - 1).
    """
    shares = []
    for old, new in zip(before.terms, after.terms, strict=True):
        possible = old.possible_levels()
        change = (new.levels() - old.levels()).abs().float().mean()
        shares.append(change / (possible[-1] - possible[0]))
    return torch.stack(shares).mean()


def saturated(latent: Tensor, bound: float) -> Tensor:
    """Return the share of latents at or beyond +-bound: clipped there, or outside the window of their estimator."""
    return (latent.abs() >= bound).float().mean()


def entropy(rows: Tensor, bits: int) -> Tensor:
    """Return the entropy in bits of the codes of each row, averaged over rows; codes (rows, elements) < 2^bits.

    0 for rows that are constant, 1 for signs that are half and half (IR-Net's information entropy).
    """
    offset = torch.arange(len(rows), device=rows.device)[:, None] << bits
    counts = torch.bincount((rows + offset).flatten(), minlength=len(rows) << bits).reshape(len(rows), -1)
    p = counts.double() / rows.shape[1]
    # + 0.0: a constant row's sum is -0.0.
    return -torch.special.xlogy(p, p).sum(1).mean() / torch.log(torch.tensor(2.0, dtype=torch.float64)) + 0.0


def constant(rows: Tensor) -> Tensor:
    """Return the share of rows (rows, elements) that hold one code only."""
    return (rows == rows[:, :1]).all(1).float().mean()


def distance(latent: Tensor, quantized: Tensor) -> Tensor:
    """Return how far latents are from their quantized values up to a scale, averaged over rows (rows, elements).

    min over s of |W - s Q|^2 / |W|^2 = 1 - <W, Q>^2 / (|W|^2 |Q|^2): 0 if a latent row is its quantized row times a
    number. For signs it is 1 - (mean|W|)^2 / mean(W^2), XNOR-Net's approximation error: 1 - 2/pi for normal latents.
    """
    latent, quantized = latent.double(), quantized.double()
    sizes = latent.square().sum(1) * quantized.square().sum(1)
    overlap = (latent * quantized).sum(1).square()
    return (1 - torch.where(sizes > 0, overlap / sizes, 0)).mean().clamp(min=0)


def gradient_mismatch(
    quantizer: Quantizer,
    x: Tensor,
    gradient: Tensor,
    width: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return 1 - cos of two gradients with respect to x: the surrogate's, and that of the quantizer's finite steps.

    With g = dC/dq, the first is what back-propagation gives. The second is g_i (q(x + h u) - q(x - h u))_i / (2 h u_i)
    with random signs u: the exact gradient where q is smoothed by uniform noise of +-h. An element that no step of h
    takes across a threshold has no gradient there, whatever the surrogate says. 0: the same direction; 1: unrelated, or
    the surrogate passes nothing. For the straight-through estimator with clip 1 and h = 1 both are the same.

    width: h; by default half the standard deviation of x. NaN if neither gradient has an entry, and for a quantizer
    that draws random numbers: two of its values differ by chance.
    """
    quantizer = copy.deepcopy(quantizer)  # running statistics and learned scales stay untouched
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (surrogate,) = torch.autograd.grad(quantizer(leaf), leaf, gradient, allow_unused=True)
    if surrogate is None:
        surrogate = torch.zeros_like(x)
    with torch.no_grad():
        h = x.std() / 2 if width is None else torch.tensor(width, dtype=x.dtype, device=x.device)
        if not torch.equal(quantizer(x), quantizer(x)):
            return torch.tensor(torch.nan, dtype=torch.float64)
        u = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=torch.int8).to(x.dtype) * 2 - 1
        finite = gradient * (quantizer(x + h * u) - quantizer(x - h * u)) * u / (2 * h)
        a, b = surrogate.double().flatten(), finite.double().flatten()
        sizes = a.norm() * b.norm()
        nothing = (a.norm() == 0) & (b.norm() == 0)
        cosine = torch.where(sizes > 0, a @ b / sizes, 0)
        return torch.where(nothing, torch.nan, 1 - cosine)
