"""Binary weights with a learned scale for each output channel: XNOR-Net++, case 1."""

from torch import Tensor

from bnn.planes import Planes, sign_planes
from bnn.quantizers.base import Quantizer
from bnn.quantizers.description import BINARY_WEIGHTS, Description, Example, Panel
from bnn.quantizers.filters import like_filters, parameter_per_channel
from bnn.quantizers.straight_through import sign, straight_through


class LearnedScaleWeight(Quantizer):
    """Forward: q(W) = alpha_c sign(W) with a learned alpha_c for each output channel (axis 0), at first 1.

    Gradient to W: alpha_c if |W| <= 1, else 0. Gradient to alpha_c: sum of dC/dq sign(W) over the filter.
    Bulat and Tzimiropoulos, "XNOR-Net++", BMVC 2019, section 3, case 1: Gamma has one number for each output channel,
    which scales the weights as well as the output. Cases 2 to 4 vary over the map and are `bnn.layers.OutputScale`.

    channels: the number of output channels; a layer tells it by itself.

    >>> import torch
    >>> quantizer = LearnedScaleWeight(channels=1)
    >>> w = torch.tensor([[0.5, -1.5]], requires_grad=True)
    >>> q = quantizer(w)
    >>> q.tolist()
    [[1.0, -1.0]]
    >>> q.backward(torch.tensor([[1.0, 3.0]]))
    >>> w.grad.tolist(), quantizer.alpha.grad.tolist()
    ([[1.0, 0.0]], [-2.0])
    """

    description = Description(
        group=BINARY_WEIGHTS,
        method="XNOR-Net++ case 1",
        year=2019,
        forward="alpha_c sign(W)",
        gradient="alpha_c if |W| <= 1",
        storage="learned a channel",
        panel=Panel(learned={"alpha": 0.7}, note=r"$\alpha$ = 0.7"),
        examples=(
            Example(
                (0.5, 0.5, 0.5, -0.5, -0.5, -0.5, -0.5, -0.5),
                (0, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 0),
                learned={"alpha": -0.5},
            ),
        ),
    )

    for_weights = True
    _bits = 1

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = parameter_per_channel(channels, 1.0)

    def forward(self, w: Tensor) -> Tensor:
        fixed = w.detach()
        return straight_through(w, sign(fixed), fixed.abs() <= 1) * like_filters(self.alpha.to(w.dtype), w)

    def planes(self, w: Tensor) -> Planes:
        return sign_planes(w, self.alpha.detach().to(w.dtype))

    def extra_repr(self) -> str:
        return f"channels={len(self.alpha)}"
