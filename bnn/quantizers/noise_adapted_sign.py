"""Sign with the gradient of its Fourier series and a small network for what the series leaves out: FDA-BNN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.quantizers.description import BINARY_INPUTS, Description, Example, Panel
from bnn.quantizers.fda_sign import FdaSign


class NoiseAdaptedSign(FdaSign):
    """Training: q(x) = sign(x) + alpha e(x), e(x) = ReLU(x W1) W2 + a sin(x). Evaluation: sign, as +1 or -1.

    Gradient to x: FdaSign's, plus alpha times that of e by the chain rule; W1 and W2 are learned. In evaluation alone
    FdaSign's.
    Xu et al., "Learning Frequency Domain Approximation for Binary Neural Networks", NeurIPS 2021, section 2.3,
    equations 13 and 14, with the sign in the place of the series in the forward pass (figure 2; algorithm 1 prints the
    sign alone). e stands for the error of the finite series. alpha falls to 0 during training, so that nothing is lost
    in evaluation: a schedule sets `alpha`, as it sets `n`. Equations 15 to 17 leave alpha out; here it is part of the
    chain rule. The paper's a is 0.1 (table 4 is about the shortcut), its W1 reduces d numbers to d / 64.

    The paper says neither what the d numbers are nor how alpha falls. As in BiBench's code they are the channels at
    one place of an input and the weights of one filter, alpha falls by a cosine from 0.1, and fewer than 64 numbers
    are reduced to d / 4. W1 and W2 begin as those of nn.Linear, with mean 0 as the paper asks.

    channels, channel_axis, fan_in: a layer tells them by itself; with fan_in it is for weights, without for inputs.
    n, frequency: as for FdaSign. shortcut: a. reduction: numbers for one hidden unit; 4 where there are fewer numbers.

    >>> quantizer = NoiseAdaptedSign(channels=1, n=1, frequency=1.0, alpha=1.0, shortcut=0.5)
    >>> with torch.no_grad():
    ...     _ = quantizer.reduce.fill_(2.0), quantizer.expand.fill_(0.25)
    >>> x = torch.tensor([[-0.5], [0.5], [0.0]], requires_grad=True)
    >>> y = quantizer(x)  # 0.5 sin 0.5 = 0.2397
    >>> [round(v, 4) for v in y.flatten().tolist()]
    [-1.2397, 1.4897, 1.0]
    >>> y.sum().backward()
    >>> [round(g, 4) for g in x.grad.flatten().tolist()]  # FdaSign's 1.2074 and 2.5465, 0.5 cos x, 0.5 above 0
    [1.6462, 2.1462, 3.0465]
    >>> quantizer.reduce.grad.item(), quantizer.expand.grad.item()
    (0.125, 1.0)
    >>> quantizer.eval()(x).flatten().tolist()
    [-1.0, 1.0, 1.0]
    """

    description = Description(
        group=BINARY_INPUTS,
        method="FDA",
        year=2021,
        forward="sign(x) + alpha e(x) in training, e a small network and alpha falling to 0; sign(x) in evaluation",
        gradient="FdaSign's, and that of alpha e(x)",
        published="C10 R20 86.20, VGG-small 92.54; IN R18 60.2 (1/1)",
        panel=Panel(
            options={"n": 2, "frequency": 1.0, "alpha": 1.0},
            learned={"reduce": 1.0, "expand": 0.3},
            note=r"$\alpha$ = 1, n = 2, $\omega$ = 1",
            training=True,
        ),
        examples=(
            Example(
                (-1, -1, -1, 1, 1, 1, 1, 1),
                (0, 0.687934, 1.117373, 1.27324, 1.27324, 1.117373, 0.687934, 0),
                options={"n": 0, "frequency": 1.0},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        channel_axis: int = 1,
        fan_in: int | None = None,
        *,
        n: int = 9,
        frequency: float = 0.1,
        alpha: float = 0.1,
        shortcut: float = 0.1,
        reduction: int = 64,
    ):
        super().__init__(n, frequency)
        numbers = channels if fan_in is None else fan_in
        if numbers < 1 or reduction < 1:
            raise ValueError(
                f"channels, fan_in and reduction must be at least 1, got {channels!r}, {fan_in!r} and {reduction!r}"
            )
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha!r}")
        hidden = numbers // reduction or max(1, numbers // 4)
        self.alpha = alpha
        self.shortcut = shortcut
        self.channel_axis = channel_axis
        self.whole_filters = fan_in is not None
        self.reduce = nn.Parameter(nn.Linear(numbers, hidden, bias=False).weight.detach().T.contiguous())
        self.expand = nn.Parameter(nn.Linear(hidden, numbers, bias=False).weight.detach().T.contiguous())

    def _noise(self, x: Tensor) -> Tensor:
        """Return e(x)."""
        rows = x.reshape(x.shape[0], -1) if self.whole_filters else x.movedim(self.channel_axis, -1)
        noise = F.relu(rows @ self.reduce.to(x.dtype)) @ self.expand.to(x.dtype)
        noise = noise.reshape(x.shape) if self.whole_filters else noise.movedim(-1, self.channel_axis)
        return noise + self.shortcut * torch.sin(x)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        # Also where alpha is 0 already, so that every parameter has a gradient in every step.
        return y + self.alpha * self._noise(x) if self.training else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha:g}, shortcut={self.shortcut:g}"
