"""The evenly spaced levels of a quantizer, and the step and zero point with which they cover a range of values."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Values step * level. Levels are low .. high, or low - z .. high - z for a grid with a zero point z.

    low, high: integers. has_zero_point: whether z can be chosen, with which levels from 0 cover a range that is not
    symmetric; low is 0 then. channels: the number of steps, one for each row of the values, or None for one step.
    """

    low: int
    high: int
    has_zero_point: bool = False
    channels: int | None = None

    def fit(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return (step, zero point) whose levels reach from low to high (C,), each (C,) of the dtype of low.

        The range is widened to hold 0. A range of 0 alone takes the step 1. With a zero point the ends are met within
        half a step, as the zero point is rounded.
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018, sections 2.1 and 3.
        """
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.has_zero_point:
            step = (high - low) / (self.high - self.low)
        else:
            step = high / self.high
            if self.low < 0:
                step = torch.maximum(step, low / self.low)
        # Smaller steps than a float32 holds would be 0.
        step = torch.where(step > torch.finfo(torch.float32).tiny, step, torch.ones_like(step))
        zero_point = torch.zeros_like(step)
        if self.has_zero_point:
            zero_point = (-low / step).round().clamp(self.low, self.high)
        return step, zero_point

    def quantized(self, values: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        """Return values (C, M) on the grid, halves to even. step, zero_point: (C,), or (1,) for all rows."""
        step, zero_point = step[:, None], zero_point[:, None]
        levels = (values / step).clamp_(self.low - zero_point, self.high - zero_point).round_()
        return levels.mul_(step)
