"""Every engine answers like PyTorch at any batch size, and says how many layers it really runs on integers."""

import numpy as np
import pytest
import torch
from torch import nn

from experiments import engines
from experiments.post_training import quantized

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(8 * 36, 5)).eval()


def built(name, model, folder):
    engine = engines.ENGINES[name]
    for library in engine.libraries:
        pytest.importorskip(library)
    engine.build(model, IMAGES[:4], IMAGES.split(4), folder)
    return engine


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * n.startswith("torchao"))
        for n in engines.ENGINES
        if not n.endswith(" bits")
    ],
)
def test_an_engine_answers_like_pytorch(name, tmp_path):
    model = network()
    engine = built(name, model, tmp_path)
    expected = model(IMAGES).detach().numpy()
    close = {"rtol": 0, "atol": (0.05 if "int8" in name else 0.01 if "float16" in name else 1e-5) * np.ptp(expected)}
    loaded = engine.load(tmp_path, 1)
    assert (loaded.layers, loaded.integer_layers) == (3, 3 if "int8" in name else 0)
    for part, right in ((IMAGES[:1], expected[:1]), (IMAGES[:5], expected[:5]), (IMAGES, expected)):
        np.testing.assert_allclose(loaded.predict(part.numpy()), right, **close)
    of_two = engine.load(tmp_path, 1, batch=2)
    np.testing.assert_allclose(of_two.predict(IMAGES[:2].numpy()), expected[:2], **close)
    parameters = sum(p.numel() for p in model.parameters())
    width = 2 if "float16" in name else 4
    assert engines.bytes_on_disk(tmp_path) > parameters * (1 if "int8" in name else width)


def test_integer_layers_of_packed_networks_are_counted(tmp_path):
    import bnn

    model = quantized(network(), "8/8", None)
    model[5].set_quantizers(lambda: bnn.quantizers.XnorWeight(), bnn.quantizers.FullPrecision)  # 1/32
    bnn.calibrate(model, [IMAGES], "mse")
    loaded = built("packed", model.eval(), tmp_path).load(tmp_path, 1)
    assert (loaded.layers, loaded.integer_layers) == (3, 2)
    found, expected = loaded.predict(IMAGES.numpy()), model(IMAGES).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_library_that_quantized_nothing_is_found_out(tmp_path, monkeypatch):
    quantization = pytest.importorskip("onnxruntime.quantization")
    pytest.importorskip("onnx")
    import shutil

    monkeypatch.setattr(
        quantization, "quantize_static", lambda source, target, reader, **options: shutil.copy(source, target)
    )
    loaded = built("onnxruntime int8", network(), tmp_path).load(tmp_path, 1)
    assert (loaded.layers, loaded.integer_layers) == (3, 0)


@pytest.mark.parametrize("bits", [4, 2])
def test_linear_layers_have_few_bits_in_blocks(bits, tmp_path):
    """Each 32 weights have a scale and a zero point: the least and the largest are levels."""
    for library in ("onnx", "onnxruntime", "onnx_ir"):
        pytest.importorskip(library)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)
    ).eval()
    images = torch.randn(16, 3, 8, 8)
    engine = built(f"onnxruntime {bits} bits", model, tmp_path)
    loaded = engine.load(tmp_path, 1)
    assert (loaded.layers, loaded.integer_layers) == (3, 2)
    assert engines.bytes_on_disk(tmp_path) < 288 * 64 * (bits + 32 / 32 + 32 / 32) / 8 + 4 * (8 * 27 + 64 * 10) + 4000
    with torch.no_grad():
        for layer in (model[3], model[5]):
            blocks = layer.weight.reshape(-1, 32)
            low, high = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True).clamp(min=0)
            step = (high - low) / (2**bits - 1)
            zero = (-low / step).round()
            levels = (blocks / step + zero).round().clamp(0, 2**bits - 1)
            layer.weight.copy_(((levels - zero) * step).reshape(layer.weight.shape))
        expected = model(images).numpy()
    np.testing.assert_allclose(loaded.predict(images.numpy()), expected, rtol=0, atol=0.05 * np.ptp(expected))


def test_a_network_without_linear_layers_has_none_in_few_bits(tmp_path):
    for library in ("onnx", "onnxruntime", "onnx_ir"):
        pytest.importorskip(library)
    with pytest.raises(ValueError, match="no linear layer"):
        built("onnxruntime 4 bits", nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).eval(), tmp_path)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = {name: engines.missing(engine) for name, engine in engines.ENGINES.items()}
    assert said["packed"] is said["pytorch"] is None
    assert said["openvino int8"] == "openvino and nncf not installed: pip install 'bitplanes[peers]'"
    assert engines.versions(engines.ENGINES.values()) == {}
