"""OpenVINO: in FP32, and in 8 bits after NNCF (extra `peers`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.engines.base import Loaded, has_vnni, silent

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn

_FILE = "model.xml"
_LAYERS = ("Convolution", "FullyConnected", "MatMul")


def compiled(graph: Any, threads: int) -> Any:
    """Return an OpenVINO model compiled for the latency of one request at a time."""
    import openvino

    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not INT8; left alone it may be bfloat16
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(graph, "CPU", properties)


class OpenVino:
    """kind: fp32, or int8: weights by channel, activations after the ranges that NNCF finds."""

    def __init__(self, kind: str) -> None:
        self.name = f"openvino {kind}"
        self.libraries: tuple[str, ...] = ("openvino",) if kind == "fp32" else ("openvino", "nncf")
        self.extra = "peers"
        self._quantizes = kind != "fp32"

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Convert the network for any batch size, and quantize it."""
        with silent():
            import openvino

            shape = openvino.PartialShape([-1, *example.shape[1:]])
            graph = openvino.convert_model(model, example_input=example, input=[shape])
            if self._quantizes:
                graph = _quantized(graph, batches)
            openvino.save_model(graph, folder / _FILE, compress_to_fp16=False)

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Return the compiled network; the runtime's own graph says at which precision its layers run."""
        with silent():
            import openvino

            graph = openvino.Core().read_model(folder / _FILE)
            if batch is not None:
                (given,) = graph.inputs
                graph.reshape(openvino.PartialShape([batch, *list(given.partial_shape)[1:]]))
            network = compiled(graph, threads)
        kinds = [
            str(node.get_rt_info()["runtimePrecision"].astype(str))
            for node in network.get_runtime_model().get_ops()
            if node.get_rt_info()["layerType"].astype(str) in _LAYERS
        ]
        request = network.create_infer_request()

        def predict(x: np.ndarray) -> np.ndarray:
            return request.infer([x], share_inputs=True, share_outputs=True)[0]

        return Loaded(predict, len(kinds), sum(kind in ("i8", "u8") for kind in kinds))


def _quantized(graph: Any, batches: Sequence[Tensor]) -> Any:
    import nncf
    from nncf.quantization import advanced_parameters

    fix = advanced_parameters.OverflowFix.DISABLE if has_vnni() else advanced_parameters.OverflowFix.ENABLE
    return nncf.quantize(
        graph,
        nncf.Dataset([x.numpy() for x in batches]),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=advanced_parameters.AdvancedQuantizationParameters(overflow_fix=fix),
    )
