"""INT8 engines beside which packed networks are timed: OpenVINO after NNCF, and ONNX Runtime (extra `peers`).

Both get the FP32 twin and quantize it themselves after training (8-bit weights by channel, 8-bit activations), and
both are asked how many layers they really run in 8 bits: an engine that quantized nothing would be timed in FP32.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from experiments.engines import ENGINES
from experiments.engines import missing as missing_of
from experiments.engines import versions as versions_of

NEEDED = {name: ENGINES[name].libraries for name in ("openvino int8", "onnxruntime int8")}
# Least correlation of an engine's outputs with those of the FP32 network, over all images that calibrate it. A network
# of random weights makes much of little: noise of 3 % on ResNet-20's images leaves 0.71. Engines whose sums saturate
# reached 0.07 there, and 0.5 on VGG-small.
LEAST_CORRELATION = 0.6


class Int8Peer(NamedTuple):
    """run: the network on the images that were given. int8_layers of layers: convolutions and linear layers.

    correlation: of its outputs with those of the FP32 network.
    """

    run: Callable[[], Any]
    layers: int
    int8_layers: int
    correlation: float


def versions() -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    return versions_of(ENGINES[name] for name in NEEDED)


def missing(name: str) -> str | None:
    """Return why a peer cannot be had, or None."""
    return missing_of(ENGINES[name])


Maker = Callable[[nn.Module, Tensor, Tensor, int], tuple[Callable[[np.ndarray], Any], int, int]]


def _maker(name: str) -> Maker:
    def make(model: nn.Module, images: Tensor, calibration: Tensor, threads: int) -> Any:
        # On Windows a file that the engine has open cannot be removed yet.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            ENGINES[name].build(model, images, calibration.split(len(images)), Path(folder))
            return ENGINES[name].load(Path(folder), threads, len(images))

    return make


_MAKERS = {name: _maker(name) for name in NEEDED}


def make_int8_peer(name: str, twin: nn.Module, images: Tensor, calibration: Tensor, threads: int) -> Int8Peer:
    """Return the FP32 network in INT8, as one of NEEDED runs it on these images.

    twin: in evaluation mode. calibration: whole batches of images, from which ranges of activations are taken.
    RuntimeError if no layer became INT8, or if the answers have little to do with those of the FP32 network.
    """
    run, layers, int8_layers = _MAKERS[name](twin, images, calibration, threads)
    if not int8_layers:
        raise RuntimeError(f"{name} quantized none of {layers} layers: nothing to time")
    batches = calibration.split(len(images))
    with torch.inference_mode():
        expected = np.concatenate([twin(x).numpy().ravel() for x in batches])
    found = np.concatenate([np.array(run(x.numpy())).ravel() for x in batches])
    correlation = float(np.corrcoef(found, expected)[0, 1])
    if not correlation >= LEAST_CORRELATION:
        raise RuntimeError(f"{name} answers otherwise than the FP32 network (correlation {correlation:.3f})")
    array = images.numpy()
    return Int8Peer(lambda: run(array), layers, int8_layers, round(correlation, 3))
