"""Uniform quantizers whose step is learned: LSQ."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bnn.planes import (
    Planes,
    Term,
    check_bits,
    code_bits,
    powers_of_two,
    sign_planes,
    signed_code_bits,
    twos_complement,
)
from bnn.quantizers.base import Uniform
from bnn.quantizers.data_initialized import DataInitialized, mean_over_processes
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.filters import filters, like_filters
from bnn.quantizers.grid import Grid
from bnn.quantizers.masks import as_numbers, between
from bnn.quantizers.straight_through import sign

_SIGNS = (-1, 1)  # the bounds of signed levels of one bit


def _are_signs(bounds: tuple[Any, Any]) -> bool:
    """Return whether bounds are those of signs; tensors are not asked, for that would wait for the device."""
    return isinstance(bounds[0], int) and bounds == _SIGNS


def _levels(x: Tensor, step: Tensor, bounds: tuple[Any, Any]) -> Tensor:
    if _are_signs(bounds):
        return sign(x)
    # + 0.0: small negative numbers round to -0.0, planes know only 0.
    return (x / step).clamp_(*bounds).round_().add_(0.0)


def _stable_slope(ratio: Tensor, amplitude: float) -> Tensor:
    """Return StableQAT's derivative of rounding at x / s, see `StableLsqWeight`."""
    wave = math.sqrt(2) * math.pi * amplitude * torch.cos(math.pi * (ratio + ratio.round()))
    return (1 - wave) / (1 + wave)


class LearnedStep(torch.autograd.Function):
    """levels * step, with equations 3 and 5. The step has one axis of channels, made to go with x, or none.

    bounds: the lowest and highest level, integers or tensors of x's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bounds: tuple[Any, Any], factor: float, amplitude: float) -> Tensor:
        ctx.save_for_backward(
            x, step
        )  # and not the levels: another tensor of x's size, which x and the step give again
        ctx.bounds, ctx.factor, ctx.amplitude = bounds, factor, amplitude
        return _levels(x, step, bounds).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (g,) = gradients
        x, step = ctx.saved_tensors
        low, high = ctx.bounds
        ratio = x / step
        clamped = ratio.clamp(low, high)
        if isinstance(low, int):
            to_x = between(g, ratio, low, high)
            within = between(ratio, ratio, low, high)
        else:
            inside = as_numbers((ratio > low) & (ratio < high), x.dtype)
            to_x, within = g * inside, inside.mul_(clamped)
        if ctx.amplitude != 0:
            to_x = to_x * _stable_slope(within, ctx.amplitude)
        levels = sign(x) if _are_signs(ctx.bounds) else clamped.round_()
        change = levels.sub_(within) * g
        return to_x, change.sum_to_size(step.shape) * ctx.factor, None, None, None


class _Lsq(DataInitialized):
    """What weights and activations share: round(clip(x / s, low, high)) s."""

    amplitude: float = 0.0  # of the wave in the gradient to x, which StableQAT adds

    def __init__(self, bits: int, signed: bool, channels: int | None = None):
        super().__init__()
        self._bits = check_bits(bits)
        self.signed = signed
        self.step = nn.Parameter(torch.ones(() if channels is None else (channels,)))

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and highest level: (-Q_N, Q_P)."""
        if self.signed and self._bits == 1:
            return _SIGNS
        return (-(2 ** (self._bits - 1)), 2 ** (self._bits - 1) - 1) if self.signed else (0, 2**self._bits - 1)

    def _step(self, x: Tensor) -> Tensor:
        """Return the step as a positive number, whatever an optimizer made of the parameter."""
        step = self.step.to(x.dtype).abs().clamp(min=torch.finfo(x.dtype).tiny)
        return step if step.ndim == 0 else like_filters(step, x)

    def initialize(self, x: Tensor) -> None:
        magnitude = x.abs().mean() if self.step.ndim == 0 else filters(x).abs().mean(1)
        start = 2 * magnitude / self.bounds[1] ** 0.5
        # Nothing but zeros says nothing about the step.
        self.step.copy_(mean_over_processes(torch.where(start > 0, start, torch.ones_like(start))))

    def _features(self, x: Tensor) -> int:
        """Return how many numbers share a step: what the gradient of the step is scaled by."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.initialize_once(x)
        step = self._step(x)
        factor = (self._features(x) * self.bounds[1]) ** -0.5
        return LearnedStep.apply(x, step, self.bounds, factor, self.amplitude)

    @property
    def grid(self) -> Grid | None:
        """The bounds, and as many steps as there are; signs have no range that a step could cover."""
        return (
            None if self.bounds == _SIGNS else Grid(*self.bounds, channels=len(self.step) if self.step.ndim else None)
        )

    def set_grid(self, step: Tensor, zero_point: Tensor) -> None:
        self.step.detach().copy_(step.reshape(self.step.shape))
        self.initialized.fill_(True)

    @property
    def uniform(self) -> Uniform | None:
        """Division by the step, if there is one for all."""
        if self.bounds == _SIGNS or self.step.ndim > 0:
            return None
        return Uniform(float(self._step(torch.zeros(1)).detach()), True, *self.bounds)

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        step = self._step(x).detach()
        levels, scale = _levels(x, step, self.bounds), step.reshape(self.step.shape)
        if self.bounds == _SIGNS:
            return sign_planes(levels, scale)
        if self.signed:
            bits, multipliers = signed_code_bits(levels, self._bits), twos_complement(self._bits)
        else:
            bits, multipliers = code_bits(levels, self._bits), powers_of_two(self._bits)
        return Planes((Term(bits, False, multipliers, scale),))


class LsqWeight(_Lsq):
    """k-bit weights with a learned step. Forward: q(W) = s round(clip(W / s, -Q_N, Q_P)), Q_N = 2^(k-1) = Q_P + 1.

    Gradient to W: 1 if -Q_N < W / s < Q_P, else 0. Gradient to s: round(W / s) - W / s inside, -Q_N or Q_P outside,
    summed and multiplied by 1 / sqrt(N Q_P) with N weights to a step. The step begins at 2 mean|W| / sqrt(Q_P), taken
    from the weights in the first forward of training. Halves are rounded to even.
    Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2, equations 1 to 5.

    k = 1, which the paper does not have: q(W) = s sign(W), with Q_N = Q_P = 1 in the gradients.

    bits: k, 1 .. 8. per_channel: a step for each output channel (axis 0) rather than for the layer.
    channels: the number of output channels, only needed for per_channel; a layer tells it by itself.

    >>> quantizer = LsqWeight(bits=2).eval()
    >>> w = torch.tensor([[-3.0, -0.75, 0.25, 1.5]], requires_grad=True)
    >>> q = quantizer(w)
    >>> q.tolist()
    [[-2.0, -1.0, 0.0, 1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist(), quantizer.step.grad.item()
    ([[0.0, 1.0, 1.0, 0.0]], -0.75)
    """

    description = Description(
        group=FEW_BITS,
        method="LSQ",
        year=2020,
        forward="s round(clip(W/s, -2^(k-1), 2^(k-1)-1)), s learned a layer or channel",
        gradient="1 inside; to s round(W/s) - W/s",
        storage="{0,1}, two's complement, scale s",
        published="C10 VGG-small 2/2 93.42 (hustzxd's)",
        panel=Panel(options={"bits": 3}, learned={"step": 0.4}, note="3 bits, s = 0.4"),
        examples=(
            Example(
                (-1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5),
                (0, 0, 1, 1, 1, 0, 0, 0),
                options={"bits": 2},
                learned={"step": 0.5},
            ),
            Example(
                (-0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
                (0, 0, 0, 1, 1, 0, 0, 0),
                options={"bits": 1},
                learned={"step": 0.5},
            ),
        ),
    )

    def __init__(self, bits: int, per_channel: bool = False, channels: int | None = None):
        if per_channel and channels is None:
            raise ValueError("per_channel needs channels, the number of output channels")
        super().__init__(bits, True, channels if per_channel else None)
        self.per_channel = self.for_weights = per_channel

    def _features(self, x: Tensor) -> int:
        return math.prod(x.shape[1:]) if self.per_channel else x.numel()

    def extra_repr(self) -> str:
        return f"bits={self._bits}, per_channel={self.per_channel}"


class LsqActivation(_Lsq):
    """k-bit activations with a learned step. Forward: q(x) = s round(clip(x / s, -Q_N, Q_P)).

    Unsigned (default): Q_N = 0, Q_P = 2^k - 1. Signed: Q_N = 2^(k-1), Q_P = 2^(k-1) - 1.
    Gradient to x: 1 if -Q_N < x / s < Q_P, else 0. Gradient to s: round(x / s) - x / s inside, -Q_N or Q_P outside,
    summed and multiplied by 1 / sqrt(N Q_P) with N features to a sample. The step begins at 2 mean|x| / sqrt(Q_P),
    taken from the first batch of training. Halves are rounded to even.
    Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2, equations 1 to 5.

    bits: k, 1 .. 8; signed 1 bit, which the paper does not have, is s sign(x) with Q_N = Q_P = 1 in the gradients.

    >>> quantizer = LsqActivation(bits=2).eval()
    >>> x = torch.tensor([[-0.5, 0.0, 1.25, 5.0]], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [[0.0, 0.0, 1.0, 3.0]]
    >>> y.sum().backward()
    >>> x.grad.tolist(), round(quantizer.step.grad.item(), 4)
    ([[0.0, 0.0, 1.0, 0.0]], 0.7939)
    """

    description = Description(
        group=FEW_BITS,
        method="LSQ",
        year=2020,
        forward="s round(clip(x/s, 0, 2^k-1)), or signed",
        gradient="1 inside; to s round(x/s) - x/s",
        storage="{0,1}, scale s",
        published="see `LsqWeight`",
        panel=Panel(options={"bits": 2}, learned={"step": 0.5}, note="2 bits, s = 0.5"),
        examples=(
            Example((0, 0, 0, 0, 0, 0.5, 1, 1.5), (0, 0, 0, 0, 0, 1, 1, 0), options={"bits": 2}, learned={"step": 0.5}),
        ),
    )

    elementwise = True

    def __init__(self, bits: int, signed: bool = False):
        super().__init__(bits, signed)

    def _features(self, x: Tensor) -> int:
        return math.prod(x.shape[1:]) if x.ndim > 1 else x.numel()

    def extra_repr(self) -> str:
        return f"bits={self._bits}, signed={self.signed}"
