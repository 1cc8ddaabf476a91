"""An activation with a learned slope on each side of 0: AdaBin's Maxout."""

import torch.nn.functional as F
from torch import Tensor, nn

from bnn.quantizers.filters import parameter_per_channel


class Maxout(nn.Module):
    """f(x) = positive_c max(x, 0) - negative_c max(-x, 0), with both slopes learned for each channel c.

    Input (N, C, ...), output of the same shape. Gradient to x: positive_c above 0, negative_c below, 0 at 0.
    Tu et al., "AdaBin", ECCV 2022, as in the authors' code: the slopes begin at 1 and 0.25. It stands behind a binary
    convolution and its batch norm, where ReActNet has RPReLU.

    channels: C. positive, negative: where the slopes begin.

    >>> import torch
    >>> f = Maxout(1, positive=2.0)
    >>> x = torch.tensor([[3.0], [0.0], [-2.0]], requires_grad=True)
    >>> y = f(x)
    >>> y.flatten().tolist()
    [6.0, 0.0, -0.5]
    >>> y.sum().backward()
    >>> x.grad.flatten().tolist(), f.positive.grad.item(), f.negative.grad.item()
    ([2.0, 0.0, 0.25], 3.0, -2.0)
    """

    def __init__(self, channels: int, positive: float = 1.0, negative: float = 0.25):
        super().__init__()
        self.positive = parameter_per_channel(channels, positive)
        self.negative = parameter_per_channel(channels, negative)

    def forward(self, x: Tensor) -> Tensor:
        # prelu multiplies what lies below 0 by a number for each channel, whatever the number of axes.
        below = F.prelu(-F.relu(-x), self.negative.type_as(x))
        return below - F.prelu(-F.relu(x), self.positive.type_as(x))

    def extra_repr(self) -> str:
        return f"channels={len(self.positive)}"
