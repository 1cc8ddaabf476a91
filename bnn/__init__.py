"""Binary, ternary and few-bit neural networks in PyTorch: quantizers, layers, models, data, training, conversion.

`import bnn` needs torch only. What pulls in more is loaded when it is first used: `bnn.convert` the kernels
(numba), `bnn.training` Lightning, `bnn.data` the data sets.
"""

import importlib
from typing import Any

from bnn import calibration as calibration
from bnn import layers as layers
from bnn import models as models
from bnn import quantizers as quantizers
from bnn.calibration import calibrate as calibrate
from bnn.pixels import Pixels as Pixels
from bnn.pixels import set_pixels as set_pixels
from bnn.pixels import takes_pixels as takes_pixels
from bnn.quantize import quantize as quantize
from bnn.summary import summary as summary

__version__ = "0.1.0"

# Loaded when they are first used: subpackages, names of bnn.converter (`bnn.convert` is the function), and from_onnx.
_SUBPACKAGES = ("converter", "data", "doctor", "memory", "onnx_file", "optimizers", "pruning", "training")
_OF_CONVERTER = ("ConversionError", "check_parity", "convert", "convert_step")

__all__ = [
    "ConversionError",
    "Pixels",
    "calibrate",
    "calibration",
    "check_parity",
    "convert",
    "convert_step",
    "converter",
    "data",
    "doctor",
    "from_onnx",
    "layers",
    "memory",
    "models",
    "onnx_file",
    "optimizers",
    "pruning",
    "quantize",
    "quantizers",
    "set_pixels",
    "summary",
    "takes_pixels",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"bnn.{name}")
    if name in _OF_CONVERTER:
        return getattr(importlib.import_module("bnn.converter"), name)
    if name == "from_onnx":
        return importlib.import_module("bnn.onnx_file").from_onnx
    raise AttributeError(f"module 'bnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
