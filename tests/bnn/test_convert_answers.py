"""Conversion never answers wrongly: what changes a module's answer converts right, or is refused at its place."""

import contextlib
import functools
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion import as_tuple, images, upset
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode

import bnn
from bnn.converter import ConversionError
from bnn.layers import QuantConv2d
from bnn.layers.base import QuantLayer
from bnn.quantizers import SteSign, XnorWeight

BITS = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
BATCHES = (1, 2, 5)


class Network(nn.Module):
    """Two linear layers, or what else is given, and a forward as a function of them and the input."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in (modules or {"a": nn.Linear(12, 12), "b": nn.Linear(12, 5)}).items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def chain():
    return nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 5))


def same(model, *shape):
    """The packed network answers as PyTorch does on batches of several sizes; returns it."""
    packed = bnn.convert(model.eval(), images(1, *shape))
    for count in BATCHES:
        x = images(count, *shape, seed=count)
        with torch.no_grad():
            expected = model(x.clone()).numpy()
        found = packed(x.numpy())
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))
    return packed


# -- classes that are not their base class ---------------------------------------------------------------------------


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(torch.sign(x), weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Loud(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Doubled(nn.Linear):
    def reset_parameters(self):
        for parameter in self._parameters.values():
            nn.init.normal_(parameter)

    def __getattr__(self, name):
        found = super().__getattr__(name)
        return 2 * found if name == "weight" else found


class Unchecked(nn.BatchNorm2d):
    def _check_input_dim(self, x):
        pass


class Cropped(nn.ConvTranspose2d):
    def _output_padding(self, *args, **kwargs):
        return [0, 0]


class FromThird(Standardized):
    """Overrides nothing, but is no Conv2d."""


OVERRIDES = [
    Standardized(4, 6, 3),
    FromThird(4, 6, 3),
    Loud(6, 5),
    Doubled(6, 5),
    Unchecked(4),
    Cropped(4, 3, 3, 2),
]


@pytest.mark.parametrize("module", OVERRIDES, ids=lambda module: type(module).__name__)
def test_a_class_that_overrides_what_forward_calls(module):
    torch.manual_seed(0)
    same(upset(nn.Sequential(nn.Conv2d(4, 4, 1), module)), 4, 6, 6)


def quantized(**overridden):
    cls = type("Odd", (QuantConv2d,), overridden)
    return nn.Sequential(nn.Conv2d(4, 4, 1), cls(4, 6, 3, padding=1, **BITS))


@pytest.mark.parametrize(
    ("name", "overridden"),
    [
        ("dot", lambda self, given, term: 2 * QuantConv2d.dot(self, given, term)),
        ("filters", lambda self, weight: weight.flip(1)),
        ("_pad", lambda self: 1.0),
        ("_finish", lambda self, y, x: 3 * y),
        ("pad_level", lambda self, given: 1.0),
        ("convolve", staticmethod(lambda *args: 2 * F.conv2d(*args))),
        ("forward", lambda self, x: QuantConv2d.forward(self, F.relu(x))),
    ],
)
def test_a_quantized_layer_that_overrides_something_is_refused_by_name(name, overridden):
    with pytest.raises(ConversionError, match=rf"^1: Odd cannot .*'{name}' of it is not QuantConv2d's own"):
        bnn.convert(quantized(**{name: overridden}).eval(), images(1, 4, 6, 6))


def test_what_forward_does_not_run_may_be_overridden():
    packed = same(quantized(extra_repr=lambda self: "odd"), 4, 6, 6)
    assert packed.steps[-1].op == "binary_conv"


class Flipped(SteSign):
    """Its planes are another quantizer's."""

    def forward(self, x):
        return super().forward(-x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(4, 4, 1), Flipped(), QuantConv2d(4, 6, 3, weight_quantizer=XnorWeight)),
        nn.Sequential(nn.Conv2d(4, 4, 1), QuantConv2d(4, 6, 3, input_quantizer=Flipped)),
        nn.Sequential(nn.Conv2d(4, 4, 1), QuantConv2d(4, 6, 3, weight_quantizer=Flipped)),
    ],
    ids=["alone", "of inputs", "of weights"],
)
def test_planes_that_are_not_the_numbers_of_forward(model):
    with pytest.raises(ConversionError, match=r"^[12].*the planes of Flipped"):
        bnn.convert(model.eval(), images(1, 4, 6, 6))


# -- objects and classes of which something is exchanged --------------------------------------------------------------


def by_method(layer):
    return types.MethodType(lambda self, x: F.linear(x.sign(), 2 * self.weight, self.bias), layer)


def by_partial(layer):
    return functools.partial(lambda self, x: F.linear(x, 2 * self.weight), layer)


def by_closure(layer):
    before = layer.forward
    return lambda x: 2 * before(x)


@pytest.mark.parametrize("exchanged", [by_method, by_partial, by_closure])
def test_forward_of_an_object(exchanged):
    torch.manual_seed(0)
    model = chain()
    model[2].forward = exchanged(model[2])
    same(model, 12)


def test_other_methods_of_an_object():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    model[0]._conv_forward = lambda x, weight, bias: F.conv2d(x, 2 * weight, bias)
    same(model, 4, 6, 6)
    model = chain()
    model.forward = types.MethodType(lambda self, x: 3 * self[2](self[0](x)), model)
    same(model, 12)
    layer = QuantConv2d(4, 6, 3, **BITS)
    layer.dot = lambda given, term: 2 * QuantConv2d.dot(layer, given, term)
    with pytest.raises(ConversionError, match=r"^0: QuantConv2d cannot .*'dot' of it"):
        bnn.convert(nn.Sequential(layer).eval(), images(1, 4, 6, 6))


def test_forward_of_a_class(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, 2 * self.weight, self.bias))
    same(chain(), 12)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: F.conv2d(x, 2 * weight, bias))
    same(nn.Sequential(nn.Conv2d(4, 6, 3)), 4, 6, 6)
    monkeypatch.setattr(QuantLayer, "_finish", lambda self, y, x: 2 * y)
    with pytest.raises(ConversionError, match="'_finish' of it"):
        bnn.convert(nn.Sequential(QuantConv2d(4, 6, 3, **BITS)).eval(), images(1, 4, 6, 6))


def test_an_exchanged_function_counts_where_a_module_calls_it(monkeypatch):
    torch.manual_seed(0)
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias=None: 2 * linear(x, weight, bias))
    same(chain(), 12)


class Twice(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is F.linear else result


class Heavy(torch.Tensor):
    """Weights that count twice."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result if func is F.linear else result

    def new_empty(self, *args, **kwargs):
        return self.as_subclass(torch.Tensor).new_empty(*args, **kwargs).as_subclass(Heavy)


def test_modes_and_tensor_subclasses():
    torch.manual_seed(0)
    with Twice():
        same(chain(), 12)

    def inside(m, x):
        with Twice():
            return m.a(x)

    same(Network(inside), 12)
    model = chain()
    model[2].weight = nn.Parameter(model[2].weight.data.as_subclass(Heavy))
    same(model, 12)


class TimesTwo(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", TimesTwo()),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)
def test_parametrized_weights(change):
    torch.manual_seed(0)
    model = chain()
    change(model[0])
    same(model, 12)
    root = nn.Linear(12, 12)
    change(root)
    same(root, 12)


def test_hooks_of_every_kind():
    hooks = [
        lambda m: m.register_forward_hook(lambda module, args, kwargs, y: 2 * y, with_kwargs=True),
        lambda m: m.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
        torch.nn.utils.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ]
    for hook in hooks:
        model = chain()
        hook(model[2])
        with pytest.raises(ConversionError, match=r"^2 has forward hooks"):
            bnn.convert(model.eval(), images(1, 12))
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(lambda *args: None)
        try:
            with pytest.raises(ConversionError, match="hooks for all modules"):
                bnn.convert(chain().eval(), images(1, 12))
        finally:
            handle.remove()


# -- the number of images ----------------------------------------------------------------------------------------------

BY_COUNT = {
    "mean of sums": lambda m, x: m.a(x.view(x.shape[0], -1)) / x.shape[0],
    "size": lambda m, x: m.a(x) * x.size(0),
    "numel": lambda m, x: m.a(x) / x.numel(),
    "more than two": lambda m, x: m.a(x) * (x.shape[0] >= 3),
    "bound": lambda m, x: m.a(x).clamp(-1, x.shape[0] / 4),
    "slice": lambda m, x: m.a(x)[:, : x.shape[0]],
    "padding": lambda m, x: F.pad(m.a(x), (0, x.shape[0])),
    "slope": lambda m, x: F.leaky_relu(m.a(x), 0.1 * x.shape[0]),
    "constant": lambda m, x: torch.cat([m.a(x), torch.full((x.size(0), 3), 1.0 * x.size(0))], 1),
    "literal": lambda m, x: m.a(x.view(2, -1)),
    "numbers of images": lambda m, x: m.a(x) + torch.arange(x.shape[0])[:, None],
    "first": lambda m, x: m.a(x) + x[:1],
    "backwards": lambda m, x: m.a(x.flip(0)),
    "running sum": lambda m, x: m.a(x.cumsum(0)),
    "over the batch": lambda m, x: m.a(x).softmax(0),
    "centred": lambda m, x: m.a(x) - m.a(x).mean(0),
    "total": lambda m, x: m.a(x) / x.sum(),
}


@pytest.mark.parametrize("name", BY_COUNT)
def test_what_depends_on_the_number_of_images_is_refused(name):
    with pytest.raises(ConversionError, match=r"^[\w.]+: "):
        bnn.convert(Network(BY_COUNT[name]).eval(), images(1, 12))


def test_what_uses_the_number_of_images_and_does_not_depend_on_it():
    torch.manual_seed(0)
    same(Network(lambda m, x: m.a(x.view(x.shape[0], -1)) / (x.numel() // x.size(0))), 12)
    same(Network(lambda m, x: torch.cat([m.a(x), torch.full((x.size(0), 3), 0.5)], 1)), 12)
    same(Network(lambda m, x: torch.bmm(x.view(-1, 3, 4), m.a(x).view(x.size(0), 4, 3)).flatten(1)), 12)


# -- what rounds -------------------------------------------------------------------------------------------------------

ROUNDED = {
    "to": lambda x: x.to(torch.bfloat16).float(),
    "to dtype": lambda x: x.to(dtype=torch.float16).to(torch.float32),
    "to another": lambda x: x.to(torch.zeros(1, dtype=torch.bfloat16)).float(),
    "half": lambda x: x.half().float(),
    "bfloat16": lambda x: x.bfloat16().float(),
    "type": lambda x: x.type(torch.bfloat16).float(),
    "text": lambda x: x.type("torch.HalfTensor").float(),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float16)).float(),
    "float8": lambda x: x.to(torch.float8_e4m3fn).float(),
    "int": lambda x: x.int().float(),
    "to int": lambda x: x.to(torch.int8).float(),
    "as int": lambda x: x.type_as(torch.zeros(1, dtype=torch.int32)).float(),
    "fake": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
    "bits": lambda x: x.view(torch.int32).view(torch.float32),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_is_refused_at_its_place(name):
    inner = Network(lambda m, x: ROUNDED[name](x))
    model = Network(lambda m, x: m.b(m.cast(m.a(x))), a=nn.Linear(12, 12), cast=inner, b=nn.Linear(12, 5))
    with pytest.raises(ConversionError, match=r"^cast\.\w+: "):
        bnn.convert(model.eval(), images(1, 12))


def test_what_does_not_round():
    torch.manual_seed(0)
    same(Network(lambda m, x: m.b(m.a(x).to(torch.float64).to(x.dtype).clone().detach().contiguous())), 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    def inside(m, x):
        with torch.autocast("cpu", dtype=dtype):
            y = m.a(x)
        return m.b(y.float())

    with pytest.raises(ConversionError, match=r"^a\._to_copy: gives .*float16.*autocast"):
        bnn.convert(Network(inside).eval(), images(1, 12))
    torch.manual_seed(0)
    model = upset(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), QuantConv2d(8, 4, 3, **BITS), nn.BatchNorm2d(4)))
    x = images(4, 4, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        packed = bnn.convert(model, x)
    np.testing.assert_array_equal(packed(x.numpy()), bnn.convert(model, x)(x.numpy()))


def test_another_default_dtype():
    torch.manual_seed(0)
    model = upset(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), QuantConv2d(8, 4, 3, **BITS), nn.BatchNorm2d(4)))
    x = images(4, 4, 8, 8)
    expected = bnn.convert(model, x)(x.numpy())
    torch.set_default_dtype(torch.float64)
    try:
        packed = bnn.convert(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(packed(x.numpy()), expected)


# -- what is left ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x.flatten(1),
        lambda m, x: x.unsqueeze(1),
        lambda m, x: x.permute(0, 2, 1),
        lambda m, x: (x, x.flatten(1)),
        lambda m, x: (x, F.relu(x)),
        lambda m, x: (F.relu(x), F.relu(x).flatten(1)),
        lambda m, x: ((y := F.relu(x)), y, y.flatten(1)),
    ],
)
def test_outputs_have_memory_of_their_own(run):
    model, x = Network(run).eval(), images(3, 4, 8).numpy()
    packed = bnn.convert(model, torch.from_numpy(x))
    expected = as_tuple(model(torch.from_numpy(x)))
    for _ in range(3):  # run, recorded, played back
        found = packed(x)
        arrays = found if isinstance(found, tuple) else (found,)
        for i, (y, real) in enumerate(
            zip(arrays, expected if isinstance(expected, tuple) else (expected,), strict=True)
        ):
            np.testing.assert_array_equal(y, real.numpy())
            assert not any(np.shares_memory(y, other) for other in (x, *arrays[:i]))
            y[:] = 7  # a caller's own


def test_random_numbers_and_counters_are_noticed():
    class Counter(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.calls * x

    for model in (Network(lambda m, x: m.a(x) + torch.rand(12)), nn.Sequential(nn.Linear(12, 5), Counter())):
        with pytest.raises(ConversionError, match="computes something else"):
            bnn.convert(model.eval(), images(1, 12))
    with pytest.raises(ConversionError, match=r"^rand_like: "):
        bnn.convert(Network(lambda m, x: m.a(x) + torch.rand_like(x)).eval(), images(1, 12))


def test_a_wrong_rule_is_named():
    class Cube(nn.Module):
        def forward(self, x):
            return x**3

    @bnn.converter.register_rule(Cube)
    def cube(build, module, x):
        return build.affine(x, scale=3.0)

    from bnn.converter import registry

    try:
        with pytest.raises(ConversionError, match=r"^1: its rule gives other numbers"):
            bnn.convert(nn.Sequential(nn.Linear(12, 5), Cube()).eval(), images(1, 12))
    finally:
        del registry._MODULES[Cube]


# -- relatives ---------------------------------------------------------------------------------------------------------


def test_sync_batch_norm_is_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), QuantConv2d(8, 4, 3, **BITS), nn.BatchNorm2d(4))
    x = images(4, 4, 8, 8)
    expected = bnn.convert(upset(model), x)
    found = bnn.convert(nn.SyncBatchNorm.convert_sync_batchnorm(model).eval(), x)
    assert [step.op for step in found.steps] == [step.op for step in expected.steps]
    assert found.nbytes == expected.nbytes
    np.testing.assert_array_equal(found(x.numpy()), expected(x.numpy()))


def test_lazy_modules():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).eval()
    with pytest.raises(ConversionError, match=r"0\.weight has no shape yet: run the model once"):
        bnn.convert(model, images(1, 4, 6, 6))
    model(images(2, 4, 6, 6))
    same(model, 4, 6, 6)


def test_averaged_models():
    torch.manual_seed(0)
    same(torch.optim.swa_utils.AveragedModel(chain()), 12)


def test_factors_beyond_float32_are_refused():
    model = Network(lambda m, x: (m.a(x) * 1e30 * 1e30).clamp(-1, 1)).eval()
    with contextlib.suppress(RuntimeWarning), pytest.raises(ConversionError, match="beyond float32"):
        bnn.convert(model, images(1, 12))
