"""Binary, ternary and few-bit neural networks in PyTorch: quantizers, layers, models, data, training, conversion.

`import bnn` needs torch only. What pulls in more is loaded when it is first used: `bnn.convert` the kernels
(numba), `bnn.training` Lightning, `bnn.data` the data sets.
"""

import importlib
from typing import Any

from bnn import layers as layers
from bnn import models as models
from bnn import quantizers as quantizers
from bnn.calibrate import calibrate as calibrate
from bnn.quantize import quantize as quantize
from bnn.summary import summary as summary

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("convert", "check_parity", "converter"):
        # `bnn.convert` is the function; the package of the same name is bnn.converter.
        converter = importlib.import_module("bnn.converter")
        return converter if name == "converter" else getattr(converter, name)
    raise AttributeError(f"module 'bnn' has no attribute {name!r}")
