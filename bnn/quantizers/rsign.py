"""Sign with a learned threshold for each channel: ReActNet's binarization of activations."""

import torch
from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.approx_sign import triangle
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.filters import parameter_per_channel
from bnn.quantizers.straight_through import sign, straight_through


class RSign(Quantizer):
    """Forward: q(x) = +1 if x >= a_c, else -1, with a learned shift a_c of channel c, at first 0.

    Gradient to x: 2 - 2|x - a_c| if |x - a_c| <= 1, else 0 (ApproxSign's). Gradient to a_c: minus that, summed over
    the elements of the channel.
    Liu et al., "ReActNet", ECCV 2020, generalized activation functions; the gradient is that of the authors' code.

    channels: the number of channels; a layer tells it by itself. channel_axis: the axis of x that holds them.

    >>> quantizer = RSign(channels=2)
    >>> with torch.no_grad():
    ...     _ = quantizer.shift.copy_(torch.tensor([0.5, -0.5]))
    >>> x = torch.tensor([[0.25, 0.25], [0.5, -0.75]], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    >>> y.sum().backward()
    >>> x.grad.tolist(), quantizer.shift.grad.tolist()
    ([[1.5, 0.5], [2.0, 1.5]], [-3.5, -2.0])
    """

    description = Description(
        group=BINARY_INPUTS,
        method="ReActNet",
        year=2020,
        forward="sign(x - a_c), a_c learned a channel",
        gradient="ApproxSign's at x - a_c",
        published="IN ReActNet-A 69.4, R18 65.5 (1/1)",
        panel=Panel(learned={"shift": 0.5}, note="a = 0.5"),
        examples=(Example((-1, -1, -1, -1, -1, 1, 1, 1), (0, 0, 0, 1, 1, 2, 1, 0), learned={"shift": 0.5}),),
    )

    elementwise = True
    channelwise = True
    _bits = 1

    def __init__(self, channels: int, channel_axis: int = 1):
        super().__init__()
        self.shift = parameter_per_channel(channels, 0.0)
        self.channel_axis = channel_axis

    def _shifted(self, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.channel_axis] = -1
        return x - self.shift.to(x.dtype).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self._shifted(x)
        return straight_through(shifted, sign(shifted), triangle(shifted.detach()))

    def planes(self, x: Tensor) -> Planes:
        return sign_planes(self._shifted(x.detach()), torch.ones((), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        return f"channels={len(self.shift)}" + ("" if self.channel_axis == 1 else f", channel_axis={self.channel_axis}")
