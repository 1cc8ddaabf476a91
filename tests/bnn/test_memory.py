"""Packed activations: bits against NumPy's, round trips, and gradients equal to plain autograd's bit for bit."""

import copy
import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
import quantizer_configs as configs
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnn.data import digits
from bnn.layers import QuantConv2d, QuantLinear
from bnn.memory import Count, pack_activations
from bnn.memory.bits import PackedCodes, PackedTensor, pack_flags, unpack_flags
from bnn.models import DigitsCNN, VGGSmall
from bnn.quantizers import (
    AbsmaxActivation,
    DoReFaActivation,
    FullPrecision,
    LqActivation,
    LsqActivation,
    Pact,
    Quantizer,
    SteSign,
    TernaryActivation,
    XnorWeight,
)
from bnn.training import Classifier, train

# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_flags_are_numpys_little_endian_bits(n):
    flags = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    packed = pack_flags(flags)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(flags.numpy(), bitorder="little"))
    assert torch.equal(unpack_flags(packed, n), flags)


def test_every_byte():
    flags = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little")).bool()
    assert pack_flags(flags).tolist() == list(range(256))


def test_flags_that_begin_within_a_word():
    flags = torch.rand(100) < 0.5
    for start in range(9):
        assert torch.equal(unpack_flags(pack_flags(flags[start:]), 100 - start), flags[start:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize(
    "layout", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 1)]
)
@pytest.mark.parametrize("values", [(-1, 1), (0, 0.3), (1, 1)])
def test_tensors_come_back_with_their_layout(dtype, layout, values):
    flags = torch.rand(3, 5, 7, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    x = layout(flags if dtype == torch.bool else torch.where(flags, *(torch.tensor(v, dtype=dtype) for v in values)))
    packed = PackedTensor.of(x)
    again = packed.unpack()
    assert (again.dtype, again.shape, again.stride()) == (x.dtype, x.shape, x.stride())
    assert torch.equal(again, x)
    assert packed.nbytes == -(-x.numel() // 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 200])
def test_tensors_of_few_values_come_back(dtype, count):
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=generator, dtype=torch.float64).sort().values
    codes = torch.randint(count, (3, 5, 7, 2), generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = values[codes].to(dtype).contiguous(memory_format=layout)
        packed = PackedCodes.of(x, values)
        again = packed.unpack()
        assert (again.dtype, again.shape, again.stride()) == (x.dtype, x.shape, x.stride())
        assert torch.equal(again, x)
        assert packed.nbytes == math.ceil(math.log2(count)) * math.ceil(210 / 8)
    x[1, 2, 3, 1] = math.nan
    assert PackedCodes.of(x, values).unpack().isnan().all()
    assert PackedCodes.of(x[:0], values) is PackedCodes.of(x[:, ::2], values) is None


def test_what_is_not_dense_stays():
    x = torch.ones(4, 4)
    assert PackedTensor.of(x[:, ::2]) is None
    assert PackedTensor.of(x[:1].expand(4, 4)) is None
    assert PackedTensor.of(x[:0]) is None
    assert torch.equal(PackedTensor.of(x[1:]).unpack(), x[1:])


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(model, x, **autocast):
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
        y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


def assert_same(model, x, **options):
    """Returns the counts of what was packed: binarized tensors, windows."""
    plain = gradients(model, x, **options)
    with pack_activations(model) as packing:
        packed = gradients(model, x, **options)
        counts = packing.binarized, packing.windows
    assert all(torch.equal(a, b) for a, b in zip(plain, packed, strict=True))
    after = gradients(model, x, **options)
    assert (packing.binarized, packing.windows) == counts  # removed
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))
    return counts


INPUTS = [SteSign, partial(SteSign, clip=None), partial(DoReFaActivation, bits=1), partial(DoReFaActivation, bits=2)]


@pytest.mark.parametrize("quantizer", INPUTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"padding": 1, "pad_value": 1.0}, {"padding": 2, "dilation": 2, "groups": 2}, {"stride": 2}],
)
def test_convolutions(quantizer, options):
    torch.manual_seed(0)
    layer = QuantConv2d(4, 6, 3, weight_quantizer=XnorWeight, input_quantizer=quantizer, **options)
    x = torch.randn(3, 4, 9, 9)
    assert_same(layer, x)
    assert_same(layer, x.to(memory_format=torch.channels_last))
    assert_same(layer, x, autocast=True)
    assert_same(layer.double(), x.double())


@pytest.mark.parametrize("quantizer", INPUTS)
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (6, 5)])
def test_linear_layers(quantizer, shape):
    torch.manual_seed(0)
    assert_same(QuantLinear(5, 6, weight_quantizer=XnorWeight, input_quantizer=quantizer), torch.randn(shape))


# bits of an input, of a mask that is packed, of floats that the gradient needs
FEW = [
    (partial(DoReFaActivation, bits=2), 2, 1, 0),
    (partial(DoReFaActivation, bits=8), 8, 1, 0),
    (partial(Pact, bits=4), 4, 2, 0),
    (partial(LsqActivation, bits=3, signed=True), 3, 0, 32),
    (TernaryActivation, 2, 1, 0),
    (partial(LqActivation, bits=3), 3, 1, 0),
]


@pytest.mark.parametrize(("quantizer", "bits", "masks", "rest"), FEW)
def test_inputs_of_few_bits(quantizer, bits, masks, rest):
    torch.manual_seed(0)
    layer = QuantConv2d(4, 6, 3, padding=1, weight_quantizer=XnorWeight, input_quantizer=quantizer)
    x = torch.randn(3, 4, 8, 8)
    layer(x)  # what begins with the first data has begun
    states = []  # LQ-Net's basis moves with every forward: the same state for both
    for packs in (False, True):
        twin = copy.deepcopy(layer)
        packing = pack_activations(twin) if packs else None
        states.append(gradients(twin, x))
        if packing is not None:
            n = x.numel()
            assert packing.binarized == Count(4 * n + masks * n, bits * n // 8 + masks * n // 8)
            assert rest == 0 or saved_floats(twin, x) >= n
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def saved_floats(layer, x):
    """Elements of floats of the input's shape that the layer's input quantizer keeps."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer.input_quantizer(x.requires_grad_())
    return sum(t.numel() for t in kept if t.is_floating_point() and t.shape == x.shape)


def test_lsq_keeps_its_input_once():
    x = torch.randn(3, 4, 8, 8)
    layer = QuantConv2d(4, 6, 3, weight_quantizer=XnorWeight, input_quantizer=partial(LsqActivation, bits=3))
    assert saved_floats(layer, x) == x.numel()


@pytest.mark.parametrize("options", [{"input_quantizer": AbsmaxActivation}, {"pad_value": 1.0, "padding": 1}])
def test_scales_of_samples_and_values_of_the_padding_are_not_packed(options):
    quantized = {"weight_quantizer": XnorWeight, "input_quantizer": partial(DoReFaActivation, bits=2)}
    masks = 0 if "input_quantizer" in options else 3 * 4 * 64
    layer = QuantConv2d(4, 6, 3, **(quantized | options))
    assert assert_same(layer, torch.randn(3, 4, 8, 8))[0] == Count(masks, masks // 8)


def test_a_filter_of_the_shape_of_the_input():
    torch.manual_seed(0)
    layer = QuantConv2d(4, 3, 5, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    assert_same(layer, torch.randn(3, 4, 5, 5))


def test_a_network_in_training_and_evaluation():
    torch.manual_seed(0)
    model = VGGSmall(width=0.125, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    x = torch.randn(2, 3, 32, 32)
    binarized, windows = assert_same(model, x)
    elements = 2 * (16 * 32 * 32 + 16 * 16 * 16 + 32 * 16 * 16 + 32 * 8 * 8 + 64 * 8 * 8)
    # Inputs of convolutions and windows of their estimators: 4 + 1 bytes an element, or 2 bits.
    assert binarized == Count(5 * elements, elements // 4)
    # Hardtanh keeps its input: what each of the six layers gives after pooling.
    elements += 2 * 64 * 4 * 4
    assert windows == Count(4 * elements, elements // 8)
    assert_same(model.eval(), x)


@pytest.mark.parametrize("name", configs.NAMES)
def test_every_quantizer_keeps_its_gradients(name):
    """Also what is drawn at random, initialized from data or learned."""
    weight, given = configs.factories()[name]
    torch.manual_seed(0)
    layer = QuantConv2d(4, 6, 3, padding=1, weight_quantizer=weight, input_quantizer=given)
    if not layer.input_quantizer.packable:
        with pytest.raises(ValueError, match="nothing to pack"):
            pack_activations(layer)
        return
    x = torch.randn(3, 4, 9, 9)
    layer(x)  # what is initialized from data is now
    plain, packed = copy.deepcopy(layer), layer
    packing = pack_activations(packed)
    for a, b in zip(gradients(plain, x), gradients(packed, x), strict=True):
        assert torch.equal(a, b) if a is not None else b is None
    signs = given.func.__name__ in ("SteSign", "ApproxSign", "RSign", "EdeSign", "SwishSign", "FdaSign")
    assert packing.binarized.packed > 0 or not signs


@pytest.mark.parametrize(
    "name", [name for name in configs.NAMES if configs.factories()[name][1].func is not FullPrecision]
)
def test_packing_asks_the_device_for_nothing(name):
    """On the meta device no number exists that a step could wait for."""
    weight, given = configs.factories()[name]
    layer = QuantConv2d(4, 6, 3, weight_quantizer=weight, input_quantizer=given)
    layer(torch.randn(3, 4, 9, 9))
    packing = pack_activations(layer)
    x = torch.empty(3, 4, 9, 9, device="meta", requires_grad=True)
    layer.to("meta")(x).sum().backward()
    assert x.grad.device.type == "meta"
    assert packing.binarized.packed > 0 or not (layer.saving.two_valued or layer.saving.few_valued)


EDGES = torch.tensor([-3.0, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 2.0, 6.0, 7.0, torch.inf, -torch.inf])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", [nn.Hardtanh, partial(nn.Hardtanh, -2.0, 0.5), nn.ReLU6, nn.ReLU])
def test_windows(activation, inplace):
    """Also at their bounds and for infinities. (What PyTorch's own Hardtanh does at NaN varies with the place.)"""
    torch.manual_seed(0)
    act, layer = activation(inplace=inplace), QuantLinear(12, 4, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    results = []
    for packs in (False, True):
        x = EDGES.repeat(3, 1).requires_grad_()
        model = nn.Sequential(act, layer)
        packing = pack_activations(model) if packs else None
        y = act(x + 0)
        y.backward(torch.arange(36.0).reshape(3, 12))
        results.append(x.grad)
        if packing is not None:
            assert packing.windows == Count(4 * 36, 5)
            packing.remove()
    assert torch.equal(*results)


def test_an_error_within_an_activation_leaves_no_hook_behind():
    model = nn.Sequential(nn.Hardtanh(), QuantLinear(2, 2, weight_quantizer=XnorWeight, input_quantizer=SteSign))
    with pack_activations(model) as packing:
        with pytest.raises(TypeError):
            model("no tensor")
        x = torch.randn(4, 4, requires_grad=True)
        (x * x).sum().backward()
        assert packing.windows == packing.binarized == Count()


class Ramp(Quantizer):
    """Two values in evaluation, many in training."""

    def forward(self, x):
        return x.clamp(-1, 1) if self.training else SteSign()(x)

    def planes(self, x):
        return SteSign().planes(x)


def test_a_quantizer_that_takes_no_single_number_is_not_packed():
    torch.manual_seed(0)
    layer = QuantLinear(5, 6, weight_quantizer=XnorWeight, input_quantizer=partial(XnorWeight, center=True))
    assert assert_same(layer, torch.randn(7, 5)) == (Count(), Count())


def test_a_quantizer_of_many_values_in_training_is_not_packed():
    torch.manual_seed(0)
    layer = QuantLinear(5, 6, weight_quantizer=XnorWeight, input_quantizer=Ramp)
    assert assert_same(layer, torch.randn(7, 5)) == (Count(), Count())


def test_the_probe_draws_no_random_numbers_and_leaves_the_model():
    model = DigitsCNN(width=4, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    packing = pack_activations(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert packing.layers == 3
    twin = copy.deepcopy(model)
    gradients(twin, torch.randn(2, 1, 8, 8))
    assert packing.binarized.packed > 0
    packing.reset()
    assert packing.binarized == packing.windows == Count()
    assert Count().ratio == 1


def test_a_model_that_packs_can_be_saved_and_copied():
    torch.manual_seed(0)
    layer = QuantLinear(5, 6, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    model = nn.Sequential(nn.Hardtanh(), layer, nn.ReLU())
    x, plain = torch.randn(7, 5), copy.deepcopy(model)
    expected = gradients(plain, x)
    with pack_activations(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert list(model.state_dict()) == list(plain.state_dict())
        for again in (loaded, copy.deepcopy(model), AveragedModel(model).module, pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(gradients(again, x), expected, strict=True))
    packing = loaded[1].saving.packing  # one's own, which can be taken away
    assert packing.binarized.packed > 0
    assert packing.windows.packed > 0
    packing.remove()
    assert loaded[1].saving is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.modules())


def test_a_model_without_quantized_inputs_is_refused():
    with pytest.raises(ValueError, match="nothing to pack"):
        pack_activations(nn.Sequential(QuantLinear(2, 2, weight_quantizer=XnorWeight, input_quantizer=FullPrecision)))


def test_training_gives_the_same_weights(tmp_path):
    states = []
    for packs in (False, True):
        torch.manual_seed(0)
        network = DigitsCNN(width=4, weight_quantizer=XnorWeight, input_quantizer=SteSign)
        optimizer = partial(torch.optim.Adam, lr=0.01)
        classifier = partial(Classifier, optimizer=optimizer, latent_clip=1.0, pack_activations=packs)
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        train(classifier, network, digits(), tmp_path / str(packs), epochs=1, batch_size=400, seed=0, trainer=quiet)
        states.append(network.state_dict())
        assert network.conv2.saving is None
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
