"""Linear layer with quantized weights and inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer
from bnn.quantizers.base import FullPrecision


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear whose weight and input pass through quantizers first; the weight parameter stays latent FP32.

    Input (*, in_features), output (*, out_features), float.

    weight_quantizer, input_quantizer: factories (a class or functools.partial), one instance is made for each layer.
    input_scale: multiply the output by beta = mean|x| of each sample (XNOR-Net's K, section 3.2, for a filter that
        covers the whole input); needs an input quantizer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_quantizer: QuantizerFactory = FullPrecision,
        input_quantizer: QuantizerFactory = FullPrecision,
        input_scale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._make_quantizers(weight_quantizer, input_quantizer, out_features, in_features, input_axis=-1)
        self.input_scale = input_scale
        self._check_input_scale()

    forward = QuantLayer.forward  # type: ignore[assignment]

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: float) -> Tensor:
        return F.linear(x, weight, bias)

    def _input_scale(self, x: Tensor) -> Tensor:
        return x.abs().mean(-1, keepdim=True)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", input_scale=True" if self.input_scale else "")
