"""PReLU with learned shifts before and behind it: ReActNet's activation."""

import torch.nn.functional as F
from torch import Tensor, nn

from bnn.quantizers.filters import parameter_per_channel


class RPReLU(nn.Module):
    """f(x) = x - gamma + zeta if x > gamma, else beta * (x - gamma) + zeta, with gamma, zeta, beta of each channel.

    Input (N, C, ...), output of the same shape. channels: C. gamma and zeta begin at 0, beta at `slope`.
    Liu et al., "ReActNet", ECCV 2020, generalized activation functions.

    >>> import torch
    >>> f = RPReLU(1)
    >>> with torch.no_grad():
    ...     _ = f.gamma.fill_(1), f.zeta.fill_(0.5)
    >>> f(torch.tensor([[3.0], [1.0], [-3.0]])).tolist()
    [[2.5], [0.5], [-0.5]]
    """

    def __init__(self, channels: int, slope: float = 0.25):
        super().__init__()
        self.gamma = parameter_per_channel(channels, 0.0)
        self.zeta = parameter_per_channel(channels, 0.0)
        self.beta = parameter_per_channel(channels, slope)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        shifted = x - self.gamma.to(x.dtype).reshape(shape)
        return F.prelu(shifted, self.beta.to(x.dtype)) + self.zeta.to(x.dtype).reshape(shape)

    def extra_repr(self) -> str:
        return f"channels={len(self.gamma)}"
