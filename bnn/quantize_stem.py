"""The first convolution of any model on the levels of pixels: which layer that is, and what its weights take up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnn.data_flow import DataFlow, readers_of_input
from bnn.pixels import Pixels
from bnn.quantizers.pixel_levels import check_statistics


def check_stem(stem: Any, pixels: Any) -> None:
    """TypeError or ValueError on options of `bnn.quantize` that say nothing, or not enough, of pixels."""
    if stem not in (None, "fp32", "int8"):
        raise ValueError(f"stem must be 'fp32' or 'int8', got {stem!r}")
    if pixels is not None and not isinstance(pixels, Pixels):
        raise TypeError(f"pixels must be bnn.Pixels(mean, std), got {pixels!r}")
    if stem == "int8" and pixels is None:
        raise ValueError("stem='int8' reads pixels: say how images were normalized with pixels=bnn.Pixels(mean, std)")


def stem_path(
    model: nn.Module, layers: Mapping[str, nn.Module], flow: DataFlow, example: Tensor | tuple[Any, ...] | None
) -> str:
    """Return the path of the one convolution that reads a model's input; ValueError if there is none."""
    why = "stem='int8' needs a model whose input goes into one convolution and nowhere else"
    if len(flow.first) != 1:
        raise ValueError(f"{why}; here {' and '.join(sorted(flow.first)) or 'no layer'} come first")
    (path,) = flow.first
    if type(layers[path]) not in (nn.Conv1d, nn.Conv2d):
        raise ValueError(f"{why}; here {path or type(model).__name__} comes first, a {type(layers[path]).__name__}")
    readers = readers_of_input(model, layers, example)
    if readers != [path]:
        raise ValueError(
            f"{why}; here it goes into {', '.join(readers) or 'nothing'}. Normalization in forward belongs into "
            "pixels=bnn.Pixels(mean, std)"
        )
    return path


def take_deviations(path: str, layer: Any, pixels: Pixels, shared: bool) -> None:
    """Let the latent weights of a first layer take up that pixels are divided by one deviation for all channels.

    shared: whether the weights are another model's too, which is a ValueError if they would have to change.
    """
    _, std = check_statistics(pixels.mean, pixels.std, pixels.max_value, layer.in_channels)
    factors = std.mean() / std
    if bool((factors == 1).all()):
        return
    if shared:
        raise ValueError(
            f"{path}: its weights take up that deviations differ between channels, so share_parameters=True cannot go "
            "with several: give one, or copy the parameters"
        )
    groups = layer.groups
    by_filter = factors.expand(layer.in_channels).reshape(groups, -1).repeat_interleave(len(layer.weight) // groups, 0)
    with torch.no_grad():
        layer.weight.mul_(by_filter.to(layer.weight).reshape(*by_filter.shape, *[1] * (layer.weight.ndim - 2)))
