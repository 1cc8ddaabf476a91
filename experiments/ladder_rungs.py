"""The rungs of the ladder from FP32 to one bit, and the network that stands on each."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from experiments.config_values import ConfigError


class Rung(NamedTuple):
    """bits: weights/inputs. engines: those that run it, by their names in experiments.engines.ENGINES.

    ptq: bits of all layers that are quantized without training; quantizer: of configs/quantizer, with which the network
    is trained further from its FP32 weights; neither: it stays in floats. evenly_spaced: are that quantizer's levels,
    so that training begins with the steps of bnn.calibrate. rectified: options by which it cuts off what is negative,
    for networks of which it takes the place of a ReLU. prepared: the class that makes of the network what is trained
    further for its engines, which take that then; such a rung is no packed network.
    """

    name: str
    bits: str
    engines: tuple[str, ...] = ("packed",)
    ptq: str | None = None
    dynamic: bool = False
    quantizer: str | None = None
    evenly_spaced: bool = False
    rectified: tuple[str, ...] = ()
    prepared: str | None = None


_UNSIGNED = ("quantizer.input.signed=false",)
RUNGS = {
    rung.name: rung
    for rung in (
        Rung("fp32", "32/32", ("pytorch", "packed", "onnxruntime fp32", "openvino fp32")),
        Rung("fp16", "16/32", ("packed float16",)),
        Rung("bf16", "16/32", ("packed bfloat16",)),
        Rung("int8", "8/8", ("packed", "onnxruntime int8", "openvino int8", "torchao int8"), ptq="8/8"),
        Rung("int8_dynamic", "8/8", ("packed", "onnxruntime int8 dynamic"), ptq="8/8", dynamic=True),
        Rung("int4", "4/4", ptq="4/4"),
        Rung("linear4", "4/8", ("onnxruntime 4 bits",)),
        Rung("linear2", "2/8", ("onnxruntime 2 bits",)),
        Rung("int8_qat", "8/8", quantizer="int8", evenly_spaced=True),
        Rung(
            *("int8_qat_torchao", "8/8", ("torchao int8 trained",)),
            quantizer="fp32",
            prepared="experiments.engines.torchao_qat.Prepared",
        ),
        Rung("lsq4", "4/4", quantizer="lsq4", evenly_spaced=True, rectified=_UNSIGNED),
        Rung("lsq2", "2/2", quantizer="lsq2", evenly_spaced=True, rectified=_UNSIGNED),
        Rung("ternary", "t/32", quantizer="twn"),
        Rung("bwn", "1/32", quantizer="bwn"),
        Rung("xnor", "1/1", quantizer="xnor"),
    )
}


def chosen(names: Iterable[str] | None, train: bool) -> list[Rung]:
    """Return the rungs of these names, all for None; FP32 comes first. ConfigError for a name that is none.

    train: whether those that are trained further are among them.
    """
    wanted = list(RUNGS) if names is None else ["fp32", *(name for name in names if name != "fp32")]
    if unknown := [name for name in wanted if name not in RUNGS]:
        raise ConfigError(f"there is no rung {unknown[0]!r}; rungs are {', '.join(RUNGS)}")
    return [RUNGS[name] for name in wanted if train or RUNGS[name].quantizer is None]


def quantized_without_training(
    network: Any, rung: Rung, images: Sequence[Any], observer: str, ends: int | None = None
) -> Any:
    """Return a rung's network in evaluation mode, made from one in FP32 by looking at some batches of inputs."""
    import bnn
    from experiments.post_training import quantized

    assert rung.ptq is not None
    model = quantized(network, rung.ptq, ends, rung.dynamic)
    return bnn.calibrate(model, images, observer, "mse").eval()


def untrained(network: Any, rung: Rung, images: Sequence[Any], factories: dict[str, Callable[..., Any]]) -> Any:
    """Return a network with the FP32 network's weights and a rung's quantizers, which nobody has trained.

    factories: {"weight": ..., "input": ...}. Layers that the model leaves in floats stay so; of a model without layers
    of ours the first and the last do.
    """
    import bnn
    from bnn.layers.base import QuantLayer

    quantizers: dict[str, Any] = {f"{key}_quantizer": factory for key, factory in factories.items()}
    model = copy.deepcopy(network)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    for layer in layers:
        layer.set_quantizers(**quantizers)
    if not layers:
        model = bnn.quantize(model, **quantizers)
    return bnn.calibrate(model.eval(), images).eval()


def plain(network: Any) -> Any:
    """Return a copy of a network in FP32 whose layers are PyTorch's own, which other libraries know; the same function.

    A quantized layer that does not quantize does more than PyTorch's does (it pads by itself), and what a library does
    not recognize it leaves in floats.
    """
    from torch import nn

    from bnn.layers.base import QuantLayer

    twin = copy.deepcopy(network)
    for layer in list(twin.modules()):
        if isinstance(layer, QuantLayer):
            kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
            kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
            if kind is not None and not getattr(layer, "pad_value", 0):
                del layer.weight_quantizer, layer.input_quantizer
                layer.__class__ = kind  # type: ignore[assignment]  # weights and geometry stay
    return twin


def with_rounded_weights(network: Any, engine: str) -> Any:
    """Return the network that an engine's packed file is compared with: with 16-bit weights where it stores these."""
    from bnn.converter.half_floats import round_weights

    storage = engine.removeprefix("packed").strip()
    if not storage:
        return network
    rounded = copy.deepcopy(network)
    round_weights(rounded, storage)
    return rounded
