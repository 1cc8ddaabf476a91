"""Embedding with a quantized table."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.layers.base import QuantizerFactory, QuantLayer, make_quantizer
from bnn.quantizers.base import FullPrecision


class QuantEmbedding(QuantLayer, nn.Embedding):
    """nn.Embedding whose table passes through a quantizer; the weight parameter stays latent FP32.

    Input integer indices (*), output float (*, embedding_dim). A scale "per channel" is one per row of the table.

    weight_quantizer: a factory (a class or functools.partial).
    padding_idx: as in nn.Embedding this row gets no gradient; its zeros are quantized like any other value, so a
        quantizer without a zero gives that row other values.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        weight_quantizer: QuantizerFactory = FullPrecision,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.weight_quantizer = make_quantizer(
            weight_quantizer,
            "weight_quantizer",
            self.weight,
            channels=num_embeddings,
            channel_axis=0,
            fan_in=embedding_dim,
        )
        self.input_quantizer = FullPrecision()  # indices are not quantized
        self.input_scale = False
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of the quantized table: a quantizer's values are those of its planes, bit for bit."""
        return F.embedding(x, self.quantized_weight(), self.padding_idx)
