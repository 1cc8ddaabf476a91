"""The quantizer that a comparison is."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, sign_bits
from bnn.quantizers.base import Quantizer


class TwoValues(Quantizer):
    """Forward: q(x) = high if x > threshold, else low; with x >= threshold if not strict. low < high."""

    elementwise = True

    def __init__(self, threshold: float, strict: bool, low: float, high: float):
        super().__init__()
        self.threshold, self.strict, self.low, self.high = threshold, strict, low, high

    def forward(self, x: Tensor) -> Tensor:
        return self.planes(x).value()

    def planes(self, x: Tensor) -> Planes:
        above = x > self.threshold if self.strict else x >= self.threshold
        if self.low == 0:
            return Planes((Term(above[None], False, (1,), torch.tensor(self.high)),))
        half, middle = (self.high - self.low) / 2, (self.high + self.low) / 2
        term = Term(sign_bits(2.0 * above - 1), True, (1,), torch.tensor(half))
        return Planes((term,), torch.tensor(middle) if middle else None)
