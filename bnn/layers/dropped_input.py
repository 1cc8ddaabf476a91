"""Dropout between an input quantizer and its layer."""

from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, make_quantizer
from bnn.planes import Planes
from bnn.quantizers.base import Quantizer


class DroppedInput(Quantizer):
    """An input quantizer with dropout behind it: the layer sees zeros among the quantized values, in training only.

    Forward: dropout(q(x)), in evaluation q(x). Gradient: that of q where the value was kept, times 1 / (1 - p); else 0.

    quantizer: factory of q. p: probability that a value is dropped, in [0, 1).
    channels, channel_axis: the input's; a layer tells them by itself.
    """

    def __init__(self, quantizer: QuantizerFactory, p: float = 0.5, *, channels: int = 1, channel_axis: int = 1):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must lie in [0, 1), got {p!r}")
        self.quantizer = make_quantizer(quantizer, "quantizer", channels=channels, channel_axis=channel_axis)
        self.dropout = nn.Dropout(p)
        self.packable = self.quantizer.packable
        self.elementwise = self.quantizer.elementwise
        self.channelwise = self.quantizer.channelwise

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.quantizer(x))

    def planes(self, x: Tensor) -> Planes:
        return self.quantizer.planes(x)

    def before_evaluation(self) -> None:
        self.quantizer.before_evaluation()

    @property
    def bits(self) -> int:
        """Bits of q."""
        return self.quantizer.bits
