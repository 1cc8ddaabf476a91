"""OpenVINO's convolutions alone, the strongest x86 peers: FP32, INT8 and BinaryConvolution (extra `peers`)."""

from collections.abc import Callable
from typing import Any

import numpy as np

# So many layers one behind the other, so that input and output of a network weigh little.
STACK = 10


def openvino_layer(kind: str, channels: int, filters: int, size: int, kernel: int, threads: int) -> Callable[[], Any]:
    """Return a function that runs STACK equal layers of `channels` == `filters`; kind: "fp32", "int8" or "binary".

    The binary stack includes OpenVINO's own binarization of floats between layers, which it cannot do without. FP32 is
    forced to be that: left alone, OpenVINO computes in bfloat16 where the CPU can.
    """
    import openvino as ov
    from openvino import opset1 as op

    if channels != filters:
        raise ValueError(f"a stack of layers needs as many filters as channels, got {channels} and {filters}")
    rng = np.random.default_rng(0)
    node = data = op.parameter([1, channels, size, size], np.float32)
    one, pad = [1, 1], [kernel // 2, kernel // 2]
    for _ in range(STACK):
        if kind == "binary":
            zero = op.constant(np.zeros((1, channels, 1, 1), np.float32))
            low, high = (op.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (-1, 1))
            signs = op.fake_quantize(node, zero, zero, low, high, 2)
            bits = rng.integers(0, 2, filters * channels * kernel * kernel).tolist()
            weight = ov.op.Constant(ov.Type.u1, ov.Shape([filters, channels, kernel, kernel]), bits)
            node = op.binary_convolution(signs, weight, one, pad, pad, one, "xnor-popcount", -1.0)
        elif kind == "int8":
            low, high = (op.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (-3, 3))
            codes = op.fake_quantize(node, low, high, low, high, 256)
            weight = op.constant(rng.integers(-127, 128, (filters, channels, kernel, kernel)).astype(np.int8))
            scale = op.constant(np.full((filters, 1, 1, 1), 0.01, np.float32))
            node = op.convolution(codes, op.multiply(op.convert(weight, "f32"), scale), one, pad, pad, one)
        else:
            weight = op.constant(rng.standard_normal((filters, channels, kernel, kernel)).astype(np.float32) * 0.05)
            node = op.convolution(node, weight, one, pad, pad, one)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(ov.Model([node], [data]), "CPU", options).create_infer_request()
    x = rng.standard_normal((1, channels, size, size)).astype(np.float32)
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)
