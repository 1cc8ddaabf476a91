"""ONNX Runtime: in FP32, in 8 bits with ranges chosen beforehand or of each input, and linear layers in 4 or 2 bits.

The extra `peers` has it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.engines.base import Loaded, has_vnni, silent
from experiments.engines.onnx_matmul import quantize_linear_layers

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn

_FILE = "model.onnx"
# Nodes of a graph that ONNX Runtime has optimized: multiplications in 8 bits, and in floats.
_INT8_NODES = {
    *("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"),
    "DynamicQuantizeMatMul",
    "MatMulNBits",  # at the accuracy that it is given here
}
_FLOAT_NODES = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


class OnnxRuntime:
    """kind: fp32, int8 (quantize and dequantize nodes, weights by channel), int8 dynamic, 4 bits or 2 bits.

    The last two have weights of linear layers in so few bits and inputs of them in 8; other layers stay floats.
    """

    def __init__(self, kind: str) -> None:
        self.name = f"onnxruntime {kind}"
        self._bits = int(kind[0]) if kind.endswith(" bits") else None
        # Its quantizer of linear layers takes one package more.
        self.libraries: tuple[str, ...] = ("onnx", "onnxruntime", *(("onnx_ir",) if self._bits else ()))
        self.extra = "peers"
        self._kind = kind

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Export the network for any batch size, and quantize it."""
        import torch

        # On Windows a file that the library has open cannot be removed yet.
        with silent(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            plain = str((folder if self._kind == "fp32" else Path(temporary)) / _FILE)
            sizes = {"x": {0: "n"}, "y": {0: "n"}}
            # The exporter that PyTorch now prefers needs onnxscript and takes many times as long for the same graph.
            names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": sizes}
            torch.onnx.export(model, (example,), plain, dynamo=False, **names)  # type: ignore[arg-type]
            if self._kind != "fp32":
                from onnxruntime.quantization.shape_inference import quant_pre_process

                prepared = str(Path(temporary) / "prepared.onnx")
                quant_pre_process(plain, prepared)
                target = str(folder / _FILE)
                if self._bits is not None:
                    quantize_linear_layers(prepared, target, self._bits)
                else:
                    (_quantize if self._kind == "int8" else _quantize_dynamic)(prepared, target, batches)

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Return a session; its optimized graph says which nodes run."""
        with silent(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            import onnxruntime

            optimized = str(Path(temporary) / "optimized.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3
            if counted:
                options.optimized_model_filepath = optimized
            if batch is not None:
                options.add_free_dimension_override_by_name("n", batch)
            session = onnxruntime.InferenceSession(str(folder / _FILE), options, providers=["CPUExecutionProvider"])
            kinds = _kinds(optimized) if counted else []
        int8, floats = (sum(kind in nodes for kind in kinds) for nodes in (_INT8_NODES, _FLOAT_NODES))

        def predict(x: np.ndarray) -> np.ndarray:
            return session.run(None, {"x": x})[0]

        return Loaded(predict, int8 + floats, int8)


def _kinds(file: str) -> list[str]:
    import onnx

    # A batch norm behind a pooling becomes a convolution with one weight a channel, which is no layer.
    nodes = onnx.load(file).graph.node
    return [node.op_type for node in nodes if not any(name.startswith("bn_scale") for name in node.input)]


def _quantize(source: str, target: str, batches: Sequence[Tensor]) -> None:
    from onnxruntime import quantization

    left = iter([{"x": x.numpy()} for x in batches])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(left, None)

    quantization.quantize_static(
        source,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
    )


def _quantize_dynamic(source: str, target: str, batches: Sequence[Tensor]) -> None:
    from onnxruntime import quantization

    # Its convolutions of integers take unsigned weights alone.
    quantization.quantize_dynamic(
        source, target, weight_type=quantization.QuantType.QUInt8, reduce_range=not has_vnni()
    )
