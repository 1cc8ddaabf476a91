"""Weights of float layers, rounded to numbers of 16 bits."""

from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from bnn.converter.errors import ConversionError
from bnn.layers.base import QuantLayer

FloatStorage = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def round_weights(network: nn.Module, storage: str) -> None:
    """Round, in place, the weights of a float32 network's float layers to the nearest numbers of a type of 16 bits.

    Layers whose weights become bits keep them, also where another layer shares them. ConversionError for a type that
    is none of DTYPES and for a weight beyond the largest float16.
    """
    if storage not in DTYPES:
        raise ConversionError(f"float_storage must be one of {', '.join(DTYPES)}, got {storage!r}")
    if storage == "float32":
        return
    layers = {p: m for p, m in network.named_modules() if isinstance(m, _ConvNd | nn.Linear | nn.Embedding)}
    becomes_bits = {
        id(layer.weight)
        for layer in layers.values()
        if isinstance(layer, QuantLayer) and layer.weight_quantizer.packable
    }
    for path, layer in layers.items():
        if id(layer.weight) in becomes_bits:
            continue
        rounded = layer.weight.detach().to(DTYPES[storage]).to(torch.float32)
        if not bool(rounded.isfinite().all()):
            raise ConversionError(f"{path}: a weight is beyond the largest float16; use float_storage='bfloat16'")
        with torch.no_grad():
            layer.weight.copy_(rounded)
