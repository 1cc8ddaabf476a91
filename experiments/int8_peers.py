"""INT8 engines beside which packed networks are timed: OpenVINO after NNCF, and ONNX Runtime (extra `peers`).

Both get the FP32 twin and quantize it themselves after training (8-bit weights by channel, 8-bit activations), and
both are asked how many layers they really run in 8 bits: an engine that quantized nothing would be timed in FP32.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NEEDED = {"openvino int8": ("openvino", "nncf"), "onnxruntime int8": ("onnx", "onnxruntime")}
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


def _has_vnni() -> bool:
    """Say whether this CPU sums products of bytes in 32 bits.

    Without that, engines add pairs of products in 16 bits, which saturate unless weights have 7 bits.
    """
    from bnn_kernels.compile.isa import has

    return has("avx512vnni") or has("avxvnni")


def versions() -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    from importlib.metadata import version

    libraries = sorted({library for needed in NEEDED.values() for library in needed})
    return {library: version(library) for library in libraries if importlib.util.find_spec(library) is not None}


def missing(name: str) -> str | None:
    """Return why a peer cannot be had, or None."""
    absent = [library for library in NEEDED[name] if importlib.util.find_spec(library) is None]
    return f"{' and '.join(absent)} not installed: pip install 'bitplanes[peers]'" if absent else None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the progress, the advice and the deprecations of exporters and quantizers."""
    loggers = [logging.getLogger(name) for name in (None, "nncf")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _openvino(model: nn.Module, images: Tensor, calibration: Tensor, threads: int) -> tuple[Callable, int, int]:
    with _silent():
        import nncf
        import openvino
        from nncf.quantization import advanced_parameters

        fix = advanced_parameters.OverflowFix.DISABLE if _has_vnni() else advanced_parameters.OverflowFix.ENABLE
        options = advanced_parameters.AdvancedQuantizationParameters(overflow_fix=fix)
        graph = openvino.convert_model(model, example_input=images, input=list(images.shape))
        batches = nncf.Dataset([x.numpy() for x in calibration.split(len(images))])
        mixed = nncf.QuantizationPreset.MIXED
        quantized = nncf.quantize(graph, batches, preset=mixed, advanced_parameters=options)
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # of what is not INT8; left alone it may be bfloat16
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(quantized, "CPU", properties)
    kinds = [
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]
    request = compiled.create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        return request.infer([x], share_inputs=True, share_outputs=True)[0]

    return run, len(kinds), sum(kind in ("i8", "u8") for kind in kinds)


# Nodes of a graph that ONNX Runtime has optimized: multiplications in 8 bits, and in floats.
_INT8_NODES = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
_FLOAT_NODES = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def _onnxruntime(model: nn.Module, images: Tensor, calibration: Tensor, threads: int) -> tuple[Callable, int, int]:
    # On Windows a file that the engine has open cannot be removed yet.
    with _silent(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain, prepared, quantized, optimized = (str(Path(folder) / f"{i}.onnx") for i in range(4))
        # The exporter that PyTorch now prefers needs onnxscript and takes many times as long for the same graph.
        torch.onnx.export(model, (images,), plain, dynamo=False, input_names=["x"])
        quant_pre_process(plain, prepared)
        batches = iter([{"x": x.numpy()} for x in calibration.split(len(images))])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(batches, None)

        quantization.quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=not _has_vnni(),
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.optimized_model_filepath = optimized
        session = onnxruntime.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    int8, floats = (sum(kind in nodes for kind in kinds) for nodes in (_INT8_NODES, _FLOAT_NODES))

    def run(x: np.ndarray) -> np.ndarray:
        return session.run(None, {"x": x})[0]

    return run, int8 + floats, int8


_MAKERS = {"openvino int8": _openvino, "onnxruntime int8": _onnxruntime}


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
