"""bnn.quantize by the name of a preset or a number of bits, and what it skips by type; the names that `bnn` shows."""

import subprocess
import sys
from functools import partial

import pytest
import quantizer_configs as configs
import torch
from torch import nn

import bnn
from bnn import presets
from bnn.layers.base import QuantLayer
from bnn.quantizers import FullPrecision, LsqActivation, LsqWeight, SteSign, XnorWeight


def network():
    return nn.Sequential(nn.Linear(6, 6), nn.Hardtanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))


@pytest.mark.filterwarnings("ignore:.*never negative")
@pytest.mark.parametrize("name", configs.NAMES)
def test_a_preset_is_what_hydra_makes_of_its_file(name):
    found = presets.preset(name)
    for role, expected in zip(("weight", "input"), configs.factories()[name], strict=True):
        made = found[f"{role}_quantizer"]
        assert (made.func, made.keywords) == (expected.func, expected.keywords)
    assert found["input_scale"] == (name == "xnor_k")
    layer = bnn.quantize(network(), name)[2]
    assert type(layer.weight_quantizer) is configs.factories()[name][0].func
    assert layer.input_scale == (name == "xnor_k")


@pytest.mark.parametrize(
    ("options", "weight", "given"),
    [
        ({"bits": 1}, XnorWeight, SteSign),
        ({"bits": 4}, LsqWeight, LsqActivation),
        ({"bits": 32}, FullPrecision, FullPrecision),
        ({"weight_bits": 1, "activation_bits": 8}, XnorWeight, LsqActivation),
        ({"weight_bits": 2}, LsqWeight, FullPrecision),
        ({"activation_bits": 2}, FullPrecision, LsqActivation),
    ],
)
@pytest.mark.filterwarnings("ignore:.*never negative")
def test_bits(options, weight, given):
    model = bnn.quantize(network(), **options)
    for layer in (model[2], model[4]):
        assert type(layer.weight_quantizer) is weight
        assert type(layer.input_quantizer) is given
        for quantizer, name in ((layer.weight_quantizer, "weight_bits"), (layer.input_quantizer, "activation_bits")):
            assert quantizer.bits == options.get(name, options.get("bits", 32))
    if given is LsqActivation:  # after a ReLU no level is wasted on negative values
        assert (model[2].input_quantizer.signed, model[4].input_quantizer.signed) == (True, False)


def test_bits_and_calibration_keep_the_answers():
    torch.manual_seed(0)
    model, x = network(), torch.randn(64, 6)
    ours = bnn.calibrate(bnn.quantize(model, bits=8), x)
    torch.testing.assert_close(ours.eval()(x), model(x), rtol=0.1, atol=0.05)


def quantized(model):
    return {name for name, module in model.named_modules() if isinstance(module, QuantLayer)}


def test_types_are_skipped_and_ruled():
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Block(nn.Conv2d(3, 3, 1)), nn.Flatten(), nn.Linear(3, 3)
    )
    assert quantized(bnn.quantize(model, "bwn", skip=[nn.Linear])) == {"0", "1", "2.0"}
    assert quantized(bnn.quantize(model, "bwn", skip=nn.Linear)) == {"0", "1", "2.0"}
    assert quantized(bnn.quantize(model, "bwn", skip=[Block, "first"])) == {"1", "4"}
    assert quantized(bnn.quantize(model, "bwn", skip=(), rules={Block: None})) == {"0", "1", "4"}
    ours = bnn.quantize(model, "bwn", skip=(), rules={nn.Linear: "dorefa8", "0": {"weight_quantizer": SteSign}})
    assert ours[4].weight_quantizer.bits == 8
    assert type(ours[0].weight_quantizer) is SteSign


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (["xnorr"], {}, ValueError, "no preset .* 'xnorr'; did you mean 'xnor'.*There are: abcnet3"),
        (["zzz"], {}, ValueError, "'zzz'; there are: abcnet3"),
        ([XnorWeight], {}, TypeError, "second argument is the name of a preset such as 'xnor'"),
        ([4], {}, TypeError, "numbers of bits as bits="),
        ([], {}, TypeError, "say with what to quantize .* got none"),
        (["xnor"], {"bits": 4}, TypeError, "got more than one"),
        ([], {"bits": 9}, ValueError, "bits must be 1 to 8, or 32"),
        ([], {"bits": True}, ValueError, "bits must be"),
        ([], {"weight_bits": "ternary"}, ValueError, "weight_bits must be .* 'twn'"),
        (["xnor"], {"skip": [3]}, TypeError, "skip takes glob patterns"),
        (["xnor"], {"skip": None}, TypeError, "skip must be"),
        (["xnor"], {"skip": [SteSign()]}, TypeError, "skip takes glob patterns"),
        (["xnor"], {"skip": [nn.LSTM]}, ValueError, "no module of the type LSTM"),
        (["xnor"], {"rules": {"0": 4}}, TypeError, "rule '0' must be a dict"),
        (["xnor"], {"rules": [4]}, TypeError, "rules must be a dict"),
    ],
)
def test_mistakes_say_what_to_do(arguments, options, error, words):
    with pytest.raises(error, match=words):
        bnn.quantize(network(), *arguments, **options)


def test_what_is_no_model_or_has_no_shape_yet():
    with pytest.raises(TypeError, match="takes a model, got str"):
        bnn.quantize("xnor")
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.weight, 0\.bias have no shape yet: run the model once"):
        bnn.quantize(model, "xnor", skip=())
    model(torch.randn(2, 3))
    assert quantized(bnn.quantize(model, weight_quantizer=partial(SteSign), skip=())) == {"0", "1"}


def test_bnn_shows_all_its_names_and_presets_need_no_hydra():
    lazy = {
        "ConversionError",
        "check_parity",
        "convert",
        "convert_step",
        "converter",
        "data",
        "doctor",
        "from_onnx",
        "memory",
        "onnx_file",
        "optimizers",
        "pruning",
        "training",
    }
    names = lazy | {"calibrate", "calibration", "layers", "models", "quantize", "quantizers", "summary"}
    names |= {"Pixels", "set_pixels", "takes_pixels"}
    code = (
        "import sys, bnn; names = dir(bnn); print('numba' in sys.modules or 'lightning' in sys.modules); print(*names);"
        "import torch; bnn.quantize(torch.nn.Linear(2, 2), 'xnor', skip=()); print('hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, shown, needs_hydra = done.stdout.splitlines()
    assert (loaded, needs_hydra) == ("False", "False")
    assert names <= set(shown.split())
    assert set(bnn.__all__) == names
    assert all(getattr(bnn, name) is not None for name in names)
    assert callable(bnn.convert) and issubclass(bnn.ConversionError, Exception)
