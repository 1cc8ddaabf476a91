"""Rules of layers with float weights: convolution and linear layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn.converter.builder import Builder
from bnn.converter.graph import Value
from bnn.converter.registry import register_rule


@register_rule(nn.Conv1d, nn.Conv2d)
def conv(build: Builder, module: Any, x: Value) -> Value:
    """Convolution in float."""
    padding = same_padding(build, module) if module.padding == "same" else module.padding
    padding = 0 if padding == "valid" else padding
    if module.padding_mode != "zeros":
        around = module._reversed_padding_repeated_twice
        x, padding = build.move(x, lambda p: F.pad(p, around, mode=module.padding_mode)), 0
    return build.float_conv(x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


@register_rule(nn.Linear)
def linear(build: Builder, module: Any, x: Value) -> Value:
    """Matrix product in float."""
    return build.float_linear(x, module.weight, module.bias)


@register_rule(F.conv1d, F.conv2d, torch.conv1d, torch.conv2d)
def functional_conv(
    build: Builder, x: Value, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Convolution with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a convolution whose weight depends on the input cannot be converted")
    return build.float_conv(x, weight, bias, stride, padding, dilation, groups)


@register_rule(F.linear)
def functional_linear(build: Builder, x: Value, weight: Any, bias: Tensor | None = None) -> Value:
    """Matrix product with a weight that the network computes from its parameters alone."""
    if not isinstance(weight, Tensor):
        build.fail("a linear layer whose weight depends on the input cannot be converted")
    return build.float_linear(x, weight, bias)


def same_padding(build: Builder, module: Any) -> list[int]:
    """Return the numbers of padding="same"."""
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        build.fail("padding='same' of an even filter is lopsided; pad explicitly")
    return [r // 2 for r in reach]
