"""Every engine answers like PyTorch at any batch size, and says how many layers it really runs on integers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnn
from bnn.layers import QuantConv2d
from bnn.quantizers import FullPrecision
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
        if not n.endswith((" bits", " trained"))
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


class Normed(nn.Sequential):
    """With batch norms that are not as torchao takes all of them to be, behind a convolution and elsewhere."""

    def __init__(self, width=8, weight_quantizer=FullPrecision):
        quantizers = {"weight_quantizer": weight_quantizer, "input_quantizer": FullPrecision}
        super().__init__(
            *(QuantConv2d(3, width, 3, padding=1, **quantizers), nn.BatchNorm2d(width, eps=0.5, momentum=0.3)),
            *(nn.ReLU(), nn.BatchNorm2d(width, eps=0.2), nn.Conv2d(width, 8, 3), nn.Flatten(), nn.Dropout(0.5)),
            nn.Linear(8 * 36, 5),
        )
        self.input_shape = (3, 8, 8)


OF = {"of": f"{__name__}.Normed", "width": 16}


@pytest.fixture(scope="module")
def prepared():
    """Two networks: in FP32, and prepared by torchao and trained from its weights for two steps."""
    pytest.importorskip("torchao")
    from bnn.training import begin_with
    from experiments.engines.torchao_qat import Prepared

    torch.manual_seed(0)
    source = Normed(16)
    bnn.calibration.reestimate_batch_norm(source, [IMAGES])
    model = Prepared(**OF)
    begin_with(model, source.eval())
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(model.eval()(IMAGES), source(IMAGES), **close)  # in FP32 before the first batch
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01)
    for step in range(2):
        before = [model.graph.get_buffer(f"{at}.running_mean").clone() for at in (1, 3)]
        loss = nn.functional.cross_entropy(model(IMAGES), torch.arange(16) % 5)
        if step == 0:
            maps = source[0](IMAGES)
            follows = before[0] + 0.3 * (maps.mean((0, 2, 3)) - before[0])
            torch.testing.assert_close(model.graph.get_buffer("1.running_mean"), follows, rtol=0.02, atol=0.01)
            assert not torch.equal(before[1], model.graph.get_buffer("3.running_mean"))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    return source, model


def test_what_torchao_prepared_is_trained_saved_and_loaded(prepared):
    from experiments.engines.torchao_qat import Prepared

    source, model = prepared
    assert not torch.equal(model.train()(IMAGES), model(IMAGES))  # by dropout
    answers = model.eval()(IMAGES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(answers, model(IMAGES[torch.arange(15, -1, -1)]).flip(0))
    again = Prepared(**OF)
    shapes = {name: value.shape for name, value in again.state_dict().items()}
    assert shapes == {name: value.shape for name, value in state.items()}
    again.train().load_state_dict(state)
    torch.testing.assert_close(again.eval()(IMAGES), answers, rtol=0, atol=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())  # nothing moves
    twin = copy.deepcopy(again)
    again.train()(100 * IMAGES)
    torch.testing.assert_close(twin(IMAGES), answers, rtol=0, atol=0)
    again.training = True  # as who restores modes sets it
    assert not torch.equal(again(IMAGES), again(IMAGES))
    assert {name.removeprefix("graph.") for name, _ in model.named_parameters()} == {
        name for name, _ in source.named_parameters()
    }


@pytest.mark.slow
def test_what_torchao_converts_answers_as_the_trained_network(prepared):
    model = prepared[1].eval()
    expected = model(IMAGES).detach()
    with torch.no_grad():
        found = model.converted()(IMAGES)
    # Not the same: torchao trains with weights up to 127 steps, and converts them with steps 127 / 127.5 as large.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(np.ptp(expected.numpy())))
    torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=0)  # a copy was converted


@pytest.mark.slow
def test_a_trained_network_of_torchao_runs_on_integers(prepared, tmp_path):
    model = prepared[1].eval()
    expected = model(IMAGES).detach().numpy()
    loaded = built("torchao int8 trained", model, tmp_path).load(tmp_path, 1)
    assert (loaded.layers, loaded.integer_layers) == (3, 3)
    np.testing.assert_allclose(loaded.predict(IMAGES.numpy()), expected, rtol=0, atol=0.05 * np.ptp(expected))
    with pytest.raises(TypeError, match="trained as a Prepared, got Sequential"):
        built("torchao int8 trained", network(), tmp_path)


def test_without_torchao_what_to_install_is_said(monkeypatch):
    from experiments.engines import torchao_qat

    monkeypatch.setattr(torchao_qat, "missing", lambda engine: f"{engine.libraries[0]} not installed: {engine.extra}")
    with pytest.raises(ModuleNotFoundError, match="torchao not installed: oracles"):
        torchao_qat.Prepared("bnn.models.LeNet5")


def test_torchao_prepares_networks_in_fp32_that_say_what_they_take():
    pytest.importorskip("torchao")
    from experiments.engines.torchao_qat import Prepared

    with pytest.raises(ValueError, match=r"Normed has quantizers of ours.*quantizer=fp32"):
        Prepared(**OF, weight_quantizer=bnn.quantizers.XnorWeight)
    with pytest.raises(ValueError, match=r"torch.nn.Flatten does not say what it takes.*input_shape"):
        Prepared("torch.nn.Flatten")
    for name in ("LeNet5", "bnn.models.Nope", "no_such_package.Net"):
        with pytest.raises(ValueError, match=rf"of={name} names no class, such as bnn.models.LeNet5"):
            Prepared(name)


def test_integer_layers_of_packed_networks_are_counted(tmp_path):
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
