"""Pixels as a quantized input: their 256 values are the levels, mean and deviation their zero points and scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn.planes import Planes, Term, code_bits
from bnn.quantizers.base import Quantizer, Uniform
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.straight_through import straight_through

# Means are kept in 64ths of a pixel value: within 1/128, which is 0.00014 of a usual deviation, so that sums of a
# stem of up to a thousand inputs (16x16 patches of three channels) are int32.
FRACTION = 64
LARGEST_PIXEL = 255


class PixelLevels(Quantizer):
    """Pixels as the normalized input of a first layer. Forward: q(x) = (64 u - z) s with u = round(clip(x, 0, 255)).

    z = round(64 max_value mean) for each channel and s = 1 / (64 max_value std): q(x) is (x / max_value - mean) / std
    but for means rounded to 1/64 of a pixel value. One number s stands for all channels, so that the sums of a layer
    are integers times one scale; of several deviations their mean is taken, and what they differ by is for the weights:
    a first layer of weights w for inputs divided by each channel's own std does the same with w * mean(std) / std.

    A layer multiplies the integers 64 u - z, exactly. Its padding is level 0, the normalized zero, though no pixel has
    the value of the mean. Gradient: 64 s if 0 <= x <= 255, else 0.

    mean, std: in [0, 1] units of `max_value`, a number or one for each channel. max_value: the pixel value that stands
    for 1.0. channels: of the input, which a layer tells by itself. ValueError on means outside of [0, 1], on deviations
    that are not positive and on another number of channels.

    >>> quantizer = PixelLevels(mean=0.5, std=0.25)
    >>> quantizer(torch.tensor([[0, 128, 255]], dtype=torch.uint8)).tolist()
    [[-2.0, 0.007843137718737125, 2.0]]
    """

    description = Description(
        group=FEW_BITS,
        method="normalized pixels",
        year=None,
        forward="(u - 255 mean) / (255 std), u = round(clip(x, 0, 255)), for first layers",
        gradient="1 / (255 std) if 0 <= x <= 255",
        storage="{0,1}, one scale, a zero point a channel",
        panel=Panel(options={"mean": 0.5, "std": 1.0, "max_value": 1}, note="1 stands for 1.0, mean 0.5"),
        examples=(
            Example(
                (-0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 0.5, 1.5),
                (0, 0, 0, 1, 1, 1, 1, 1),
                options={"mean": 0.5, "std": 1.0, "max_value": 1},
            ),
        ),
    )

    elementwise = True
    _bits = 8

    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        max_value: float = LARGEST_PIXEL,
        channels: int | None = None,
    ):
        super().__init__()
        means, deviations = check_statistics(mean, std, max_value, channels)
        step = 1 / (FRACTION * max_value * deviations.mean())
        # One for each channel whatever the means, so that states fit.
        means = means.expand(len(means) if channels is None else channels)
        self.zero_points: Tensor
        self.step: Tensor
        self.register_buffer("zero_points", torch.round(FRACTION * max_value * means).to(torch.int64))
        self.register_buffer("step", step.to(torch.float32))

    @staticmethod
    def _pixels(x: Tensor) -> Tensor:
        """Return whole pixel values, at least float32."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        # + 0.0: small negative numbers round to -0.0, planes know only 0.
        return wide.clamp(0, LARGEST_PIXEL).round() + 0.0

    def forward(self, x: Tensor) -> Tensor:
        u = self._pixels(x)
        step = self.step.to(u.dtype)
        value = (FRACTION * u - self.zero_points.to(u.dtype).reshape(-1, *[1] * (x.ndim - 2))) * step
        if not x.is_floating_point():
            return value
        slope = ((x >= 0) & (x <= LARGEST_PIXEL)) * (FRACTION * step).to(x.dtype)
        return straight_through(x, value.to(x.dtype), slope)

    @property
    def uniform(self) -> Uniform:
        """Pixels as they are."""
        return Uniform(1.0, True, 0, LARGEST_PIXEL)

    def planes(self, x: Tensor) -> Planes:
        u = self._pixels(x)
        bits, multipliers = code_bits(u, 8), tuple(FRACTION << p for p in range(8))
        return Planes((Term(bits, False, multipliers, self.step.to(u.dtype), self.zero_points),))

    def extra_repr(self) -> str:
        means = [z / FRACTION for z in self.zero_points.tolist()]
        return f"zero_points={means}, step={FRACTION * float(self.step):.6g}"


def check_statistics(
    mean: float | Sequence[float], std: float | Sequence[float], max_value: float, channels: int | None
) -> tuple[Tensor, Tensor]:
    """Return means and deviations as float64 (C,) or (1,); ValueError if they cannot be those of pixels."""
    found = []
    for name, value in (("mean", mean), ("std", std)):
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be a number or one for each channel, got {value!r}") from None
        if len(numbers) != 1 and channels is not None and len(numbers) != channels:
            raise ValueError(f"{name} has {len(numbers)} channels, the input {channels}")
        found.append(numbers)
    means, deviations = found
    if 1 not in (len(means), len(deviations)) and len(means) != len(deviations):
        raise ValueError(f"mean has {len(means)} channels, std {len(deviations)}")
    if not bool(((means >= 0) & (means <= 1)).all()):
        raise ValueError(f"means must be in [0, 1], as shares of max_value, got {mean!r}")
    if not bool(((deviations > 0) & deviations.isfinite()).all()):
        raise ValueError(f"deviations must be positive, got {std!r}")
    if not 0 < max_value <= LARGEST_PIXEL:
        raise ValueError(f"max_value must be in (0, {LARGEST_PIXEL}], got {max_value!r}")
    return means, deviations
