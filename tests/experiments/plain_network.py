"""A network without normalization: what it learns of a batch is what it learns of the batch's parts together."""

import os

from torch import nn

from bnn.layers import QuantLinear


class PlainNetwork(nn.Sequential):
    """Digits (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self, width, weight_quantizer, input_quantizer, fails_in=None, **rest):
        hidden = QuantLinear(width, width, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer)
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Hardtanh(), hidden, nn.Linear(width, 10))
        if fails_in is not None and os.environ.get("LOCAL_RANK") == str(fails_in):
            raise ValueError("this process has no network")
