"""Losses of the papers that PyTorch has not."""

import torch.nn.functional as F
from torch import Tensor, nn


class SquaredHingeLoss(nn.Module):
    """The L2-SVM loss of BinaryConnect and BinaryNet (Courbariaux et al. 2015, section 3.1; 2016, section 2.1).

    With t = +1 for the right class and -1 for the others: the mean over images and classes of max(0, margin - t y)^2.
    A call takes logits y float (N, classes) and labels int64 (N,).
    """

    def __init__(self, margin: float = 1.0):
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be positive, got {margin!r}")
        self.margin = margin

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = 2.0 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1.0
        return (self.margin - targets * logits).clamp(min=0).square().mean()

    def extra_repr(self) -> str:
        return f"margin={self.margin}"
