"""The linear layer of BitNet b1.58."""

from collections import OrderedDict

import torch
from torch import nn

from bnn.layers.base import QuantizerFactory
from bnn.layers.linear import QuantLinear
from bnn.quantizers.bitnet import AbsmaxActivation, AbsmeanTernary


class BitLinear(nn.Sequential):
    """RMS normalization, int8 activations with a scale for each token, ternary weights with a scale for the layer.

    Input (*, in_features), output (*, out_features), float.
    Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", 2024, section 2.

    weight_quantizer, input_quantizer: other factories. device, dtype: as for nn.Linear.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        weight_quantizer: QuantizerFactory = AbsmeanTernary,
        input_quantizer: QuantizerFactory = AbsmaxActivation,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        linear = QuantLinear(
            in_features,
            out_features,
            bias,
            weight_quantizer=weight_quantizer,
            input_quantizer=input_quantizer,
            device=device,
            dtype=dtype,
        )
        norm = nn.RMSNorm(in_features, eps=eps, device=device, dtype=dtype)
        super().__init__(OrderedDict(norm=norm, linear=linear))
