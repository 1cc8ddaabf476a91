"""Engines that run one network at some precision, ours and those of other libraries, all used in the same way.

`ENGINES` has them by name. An engine builds a folder from a network and from that folder loads a function; what it
loads says how many layers really run on integers, as a library may quantize nothing and say nothing.
"""

from experiments.engines.base import Engine as Engine
from experiments.engines.base import Loaded as Loaded
from experiments.engines.base import bytes_on_disk as bytes_on_disk
from experiments.engines.base import missing as missing
from experiments.engines.base import versions as versions
from experiments.engines.onnx_runtime import OnnxRuntime
from experiments.engines.open_vino import OpenVino
from experiments.engines.packed import Packed
from experiments.engines.pytorch import PyTorch
from experiments.engines.torchao_pt2e import TorchaoPt2e, TorchaoTrained

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        PyTorch(),
        Packed("float32"),
        Packed("float16"),
        Packed("bfloat16"),
        OnnxRuntime("fp32"),
        OnnxRuntime("int8"),
        OnnxRuntime("int8 dynamic"),
        OnnxRuntime("4 bits"),
        OnnxRuntime("2 bits"),
        OpenVino("fp32"),
        OpenVino("int8"),
        TorchaoPt2e(),
        TorchaoTrained(),
    )
}
