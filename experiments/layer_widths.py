"""Bits of single layers: `quantizer.widths` of a config gives layers other bits than the quantizer has."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config_values import ConfigError, did_you_mean
from experiments.hydra_versions import instantiate
from experiments.identity import flat


def set_widths(network: Any, config: DictConfig) -> None:
    """Give the layers that `quantizer.widths` of a run's config names their bits, in place.

    ConfigError names a layer that is no quantized one, bits that are none, and a quantizer without bits.
    """
    given = OmegaConf.select(config, "quantizer.widths")
    if given is None:
        return
    widths: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if not isinstance(widths, dict):
        raise ConfigError(f"quantizer.widths must be {{layer: bits}} such as {{conv2: 4}}, got {widths!r}")
    quantizers = {key: instantiate(config.quantizer[key], _convert_="object") for key in ("weight", "input")}
    change_widths(network, flat(widths), quantizers["weight"], quantizers["input"])


def change_widths(
    network: Any, widths: Mapping[str, Any], weight: Callable[..., Any], inputs: Callable[..., Any]
) -> None:
    """Give layers new quantizers of so many bits, in place.

    widths: {dotted name of a layer: bits of its weights and inputs, or "W/A"}, 1 .. 8 each. weight, inputs: factories
    with a parameter `bits`. ConfigError as of `set_widths`.
    """
    from bnn.layers.base import QuantLayer

    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantLayer)}
    for name, width in widths.items():
        if name not in layers:
            hint = did_you_mean(name, list(layers)) or f" It has {', '.join(layers) or 'none'}"
            raise ConfigError(f"quantizer.widths: {type(network).__name__} has no quantized layer {name!r}.{hint}")
        found = re.fullmatch(r"([1-8])(?:/([1-8]))?", str(width))
        if found is None:
            raise ConfigError(f"quantizer.widths.{name} must be bits from 1 to 8, such as 4 or 2/8, got {width!r}")
        bits = int(found[1]), int(found[2] or found[1])
        layers[name].set_quantizers(*map(_of_bits, (weight, inputs), bits))


def _of_bits(factory: Callable[..., Any], bits: int) -> Callable[..., Any]:
    if "bits" not in inspect.signature(factory).parameters:
        name = getattr(getattr(factory, "func", factory), "__name__", factory)
        raise ConfigError(f"quantizer.widths needs quantizers with bits, and {name} has none: quantizer=lsq4 has")
    return functools.partial(factory, bits=bits)
