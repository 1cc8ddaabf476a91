"""Learned scales of a map: XNOR-Net++'s Gamma behind a binary convolution."""

from typing import Literal

import torch
from torch import Tensor, nn


class OutputScale(nn.Module):
    """y = x * Gamma, with Gamma learned and at first 1. Input (N, C, H, W), output of the same shape.

    `case` says what Gamma is made of, with alpha of C, beta of H and gamma of W numbers:

    - 1: alpha_c, a number for each channel.
    - 2: a number for each channel and place, C H W of them.
    - 3: alpha_c beta_hw, the outer product of channels and places.
    - 4: alpha_c beta_h gamma_w (default; the paper's best).

    Bulat and Tzimiropoulos, "XNOR-Net++", BMVC 2019, section 3. Put it behind a convolution of signs.
    Cases 2 to 4 fix the size of the map.

    channels, height, width: C, H, W; the latter two are not needed for case 1.
    """

    def __init__(self, channels: int, height: int = 0, width: int = 0, case: Literal[1, 2, 3, 4] = 4):
        super().__init__()
        if case not in (1, 2, 3, 4):
            raise ValueError(f"case must be 1, 2, 3 or 4, got {case!r}")
        if channels < 1 or (case > 1 and (height < 1 or width < 1)):
            raise ValueError(f"case {case} needs the size of the map, got {channels} channels, {height} x {width}")
        c, h, w = channels, height, width
        shapes = {1: [(c, 1, 1)], 2: [(c, h, w)], 3: [(c, 1, 1), (1, h, w)], 4: [(c, 1, 1), (1, h, 1), (1, 1, w)]}
        self.case = case
        self.factors = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes[case]])

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = x * factor.to(x.dtype)
        return x

    def extra_repr(self) -> str:
        return f"case={self.case}"
