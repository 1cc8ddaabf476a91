"""What every quantizer of configs/quantizer must do: planes, dtypes, copies, gradients, nothing shared."""

import copy
import inspect
import io
import pickle
from functools import partial

import pytest
import quantizer_configs as configs
import torch
from hydra import compose, initialize_config_dir

from bnn import quantizers as exported
from bnn.layers import QuantConv2d, QuantLinear
from bnn.quantizers import BinaryConnect, FullPrecision, PixelLevels, Quantizer, SteSign
from bnn.quantizers.surrogate_sign import SurrogateSign
from experiments import cli

ALL = configs.quantizers()
each = pytest.mark.parametrize(("role", "factory"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(4, 3, 3, 3), (5, 7), (1, 1), (2, 32, 1, 1)]
EDGE = [-2.0, -1.0 - 1e-6, -1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.0 + 1e-6, 2.0]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def inputs(shape, dtype):
    edge = torch.tensor(EDGE * 16, dtype=dtype)[: torch.Size(shape).numel()].reshape(shape)
    return [draw(*shape, dtype=dtype), 3 * draw(*shape, dtype=dtype), edge, torch.zeros(shape, dtype=dtype)]


def test_every_exported_quantizer_has_a_config():
    classes = {c for _, c in inspect.getmembers(exported, inspect.isclass) if issubclass(c, Quantizer)}
    # PixelLevels is no method: it belongs to the stem of a network that takes pixels.
    assert classes - {Quantizer, FullPrecision, PixelLevels} == {factory.func for _, _, factory in ALL}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", configs.NAMES)
def test_configs_are_what_hydra_composes(name):
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        assert compose("train", [f"quantizer={name}"]).quantizer == configs.config(name)


def test_subclasses_of_the_abstract_sign_define_only_a_slope():
    for c in SurrogateSign.__subclasses__():
        assert not {"forward", "planes"} & set(vars(c)), c


@each
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.float32, shape) for shape in SHAPES]
    + [pytest.param(dtype, shape, marks=pytest.mark.slow) for dtype in DTYPES[1:] for shape in SHAPES[2:]]
    + list(zip(DTYPES[1:], (SHAPES[0], SHAPES[1], SHAPES[0]), strict=True)),
    ids=str,
)
def test_planes_give_the_forward_value_bit_for_bit(role, factory, dtype, shape):
    for x in inputs(shape, dtype):
        quantizer = configs.make(role, factory, x)
        for training in (True, False):
            quantizer.train(training)
            before = x.clone()
            value = quantizer(x)
            assert torch.equal(x, before)
            assert value.shape == x.shape
            assert value.dtype == dtype
            assert value.isfinite().all()
            if quantizer.packable and (not training or configs.few_valued_in_training(quantizer)):
                planes = quantizer.planes(x)
                assert torch.equal(value, planes.value())
                # torch.equal calls 0 and -0 equal; the sum of planes knows no -0.
                assert not value[value == 0].signbit().any()
                assert planes.bits == quantizer.bits
                for term in planes.terms:
                    levels = term.levels()
                    assert levels.abs().max() <= term.max_level
                    if term.zero_points is not None:
                        levels = levels + term.zero_points
                    assert set(levels.flatten().tolist()) <= set(term.possible_levels())


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_may_have_the_dtype_too(role, factory, dtype):
    x = draw(4, 6, dtype=dtype)
    quantizer = configs.make(role, factory, x).to(dtype)
    assert quantizer(x).dtype == dtype
    quantizer.eval()
    if quantizer.packable:
        assert torch.equal(quantizer(x), quantizer.planes(x).value())


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_reach_the_input_and_everything_learned(role, factory, dtype):
    x = (6 * draw(4, 3, 3, 3)).to(dtype).requires_grad_()  # some values beyond every bound
    quantizer = configs.make(role, factory, x)
    (quantizer(x) * draw(4, 3, 3, 3, dtype=dtype)).sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def through_state_dict(quantizer, fresh):
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@each
def test_copies_and_state(role, factory):
    x, more = draw(4, 3, 3, 3), 2 * draw(4, 3, 3, 3)
    quantizer = configs.make(role, factory, x)
    quantizer(x)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(0.1)
    copies = [
        copy.deepcopy(quantizer),
        pickle.loads(pickle.dumps(quantizer)),
        through_state_dict(quantizer, configs.make(role, factory, x)),
    ]
    for again in copies:
        assert repr(again) == repr(quantizer)
        # A loaded quantizer goes on: what a first batch set is not set again.
        torch.manual_seed(1)
        expected = copy.deepcopy(quantizer)(more)
        torch.manual_seed(1)
        assert torch.equal(copy.deepcopy(again)(more), expected)
        assert torch.equal(copy.deepcopy(again).eval()(x), copy.deepcopy(quantizer).eval()(x))


def layers(name, **options):
    weight, given = configs.factories()[name]
    quantized = {"weight_quantizer": weight, "input_quantizer": given}
    return QuantConv2d(3, 4, 3, padding=1, **quantized, **options), QuantLinear(6, 5, **quantized, **options)


@pytest.mark.parametrize("name", configs.NAMES)
def test_nothing_is_shared_between_layers(name):
    seen = set()
    for layer in (*layers(name), *layers(name)):
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            tensors = [*quantizer.parameters(), *quantizer.buffers()]
            addresses = {tensor.data_ptr() for tensor in tensors} | {id(quantizer)}
            assert not addresses & seen
            seen |= addresses


@pytest.mark.parametrize("name", configs.NAMES)
def test_training_and_evaluation_of_layers_agree(name):
    for layer, x in zip(layers(name), (draw(2, 3, 5, 5), draw(7, 6)), strict=True):
        layer(x)  # what learns from a first batch has seen one
        layer.weight_quantizer.eval()
        layer.input_quantizer.eval()
        as_trained = layer(x)
        with torch.no_grad():
            exact = layer.eval()(x)
        torch.testing.assert_close(exact, as_trained, rtol=1e-4, atol=1e-4)


@each
def test_weights_and_inputs_may_change_places(role, factory):
    """Any quantizer serves weights and inputs; a scale of each filter becomes one of each sample."""
    other = "input_quantizer" if role == "weight" else "weight_quantizer"
    if other == "input_quantizer" and configs.make(role, factory, draw(3, 3)).for_weights:
        with pytest.raises((TypeError, ValueError), match=r"for weights only|needs fan_in"):
            QuantConv2d(3, 4, 3, input_quantizer=factory)
        return
    partner = {"weight_quantizer": BinaryConnect, "input_quantizer": SteSign} | {other: factory}
    pairs = [(QuantConv2d(3, 4, 3, padding=1, groups=1, **partner), draw(2, 3, 5, 5)),
             (QuantLinear(6, 5, **partner), draw(7, 6)), (QuantLinear(6, 5, **partner), draw(2, 7, 6))]  # fmt: skip
    for layer, x in pairs:
        layer(x)
        layer.weight_quantizer.eval()
        layer.input_quantizer.eval()
        as_trained = layer(x)
        with torch.no_grad():
            exact = layer.eval()(x)
        torch.testing.assert_close(exact, as_trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", configs.NAMES)
def test_autocast(name):
    for layer, x in zip(layers(name), (draw(2, 3, 5, 5), draw(7, 6)), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            (y.float() ** 2).sum().backward()
            layer.eval()(x)
        assert y.dtype == torch.bfloat16
        assert layer.weight.grad.dtype == torch.float32
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", configs.NAMES)
def test_a_training_step_asks_the_device_for_nothing(name):
    """On the meta device numbers do not exist, so whatever waits for one (on a GPU: a synchronization) fails."""
    for layer, shape in zip(layers(name), ((2, 3, 5, 5), (7, 6)), strict=True):
        bits = layer.weight_quantizer.bits, layer.input_quantizer.bits
        layer.to("meta")
        assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == bits
        x = torch.empty(shape, device="meta", requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.device.type == "meta"
        with torch.no_grad():
            layer.eval()(x)


def compiled_and_eager(name):
    weight, given = configs.factories()[name]
    net = torch.nn.Sequential(
        QuantConv2d(3, 4, 3, weight_quantizer=weight, input_quantizer=given),
        torch.nn.BatchNorm2d(4),
        QuantConv2d(4, 4, 3, weight_quantizer=weight, input_quantizer=given),
    )
    x = draw(2, 3, 8, 8)
    net(x)  # what learns from a first batch has seen one; later steps are what is worth compiling
    results = []
    for make in (lambda m: m, partial(torch.compile, fullgraph=True, backend="aot_eager")):
        twin = copy.deepcopy(net)
        torch.manual_seed(2)
        y = make(twin)(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in twin.parameters())])
    torch._dynamo.reset()
    return results


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does so
@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("name", configs.NAMES)
def test_a_training_step_is_one_graph(name):
    """What asks for a number (`.item()`, `if tensor`) would break the graph."""
    weight, given = configs.factories()[name]
    layer = QuantLinear(6, 5, weight_quantizer=weight, input_quantizer=given)
    x = draw(7, 6)
    layer(x)
    twin = copy.deepcopy(layer)
    torch.manual_seed(2)
    expected = twin(x)
    torch.manual_seed(2)
    y = torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for result in (y, expected):
        result.square().sum().backward()
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


# One of each kind of code: plain, statistics, learned scales with their own backward, state that a forward changes.
FEW = ["bnn", "irnet", "lsq2", "tbn"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does so
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in configs.NAMES]
)
def test_compiled_layers_give_the_same(name):
    eager, compiled = compiled_and_eager(name)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
