"""Pruning: masks against plain definitions, runs that go on, and narrower networks that answer like the masked ones."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

import bnn
from bnn.data import digits
from bnn.layers import QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from bnn.models import DigitsCNN, LeNet5, ResNet8, ResNet20
from bnn.pruning import ChannelPruning, WeightPruning, remove_dead_channels
from bnn.quantizers import (
    AbcWeight,
    AbsmaxActivation,
    AdaBinActivation,
    AdaBinWeight,
    DoReFaActivation,
    DoReFaWeight,
    FullPrecision,
    LsqActivation,
    LsqWeight,
    RSign,
    SteSign,
    TernaryWeight,
    XnorWeight,
)
from bnn.training import Checkup, Classifier, RunError, load_network, read_checkpoint, train

LSQ4 = {"weight_quantizer": partial(LsqWeight, 4), "input_quantizer": partial(LsqActivation, 4, signed=True)}
LSQ1 = {"weight_quantizer": partial(LsqWeight, 1), "input_quantizer": partial(LsqActivation, 1, signed=True)}
XNOR = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
PAIRS = {
    "fp32": {},
    "lsq4": LSQ4,
    "lsq4 a channel": LSQ4 | {"weight_quantizer": partial(LsqWeight, 4, per_channel=True)},
    "xnor": XNOR,
    "twn": {"weight_quantizer": TernaryWeight},
    "dorefa2": {"weight_quantizer": partial(DoReFaWeight, 2), "input_quantizer": partial(DoReFaActivation, 2)},
    "abc": {"weight_quantizer": partial(AbcWeight, 2), "input_quantizer": SteSign},
    "adabin": {"weight_quantizer": AdaBinWeight, "input_quantizer": AdaBinActivation},
    "rsign": {"weight_quantizer": XnorWeight, "input_quantizer": RSign},
}


def run_once(network, x):
    """Let quantizers that begin with data and batch norms see some."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(x)
    return network.eval()


def masked(network, x, pruning):
    pruning.begin(network)
    run_once(network, x)
    pruning.update(network, pruning.until)
    return run_once(network, x)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_the_smallest_weights_of_each_layer_are_pruned():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7))
    before = [network[i].weight.detach().numpy().copy() for i in (0, 3)]
    pruning = WeightPruning(0.3, epoch=2)
    pruning.begin(network)
    pruning.update(network, 1)
    assert all(np.array_equal(network[i].weight.detach().numpy(), w) for i, w in zip((0, 3), before, strict=True))
    pruning.update(network, 2)
    for i, w in zip((0, 3), before, strict=True):
        bound = np.sort(np.abs(w).ravel())[round(0.3 * w.size)]
        np.testing.assert_array_equal(network[i].weight.detach().numpy(), np.where(np.abs(w) >= bound, w, 0))
    pruning.end(network)
    assert set(network.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert all(type(p) is nn.Parameter and p.is_leaf for p in network.parameters())


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_the_filters_of_the_smallest_norm_are_pruned_with_what_follows_them(norm):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 3), nn.ReLU())
    with torch.no_grad():
        network[1].bias.fill_(0.5)
    w = network[0].weight.detach().numpy().copy()
    gone = np.argsort(np.linalg.norm(w.reshape(10, -1), norm, axis=1))[:4]
    pruning = ChannelPruning(0.4, norm)
    pruning.begin(network)
    pruning.update(network, 1)
    pruning.end(network)
    left = np.setdiff1d(np.arange(10), gone)
    assert not network[0].weight[gone].any()
    assert not network[0].bias[gone].any()
    assert not network[1].weight[gone].any()
    assert not network[1].bias[gone].any()
    np.testing.assert_array_equal(network[0].weight.detach()[left], w[left])
    assert network[1].bias[left].all()
    assert network[3].weight.all()  # nothing reads its channels


def test_amounts_grow_as_zhu_and_gupta_let_them():
    pruning = WeightPruning(0.8, epoch=3, until=5)
    # s_t = s_f (1 - (1 - t)^3), a third of the way at each of three epochs
    expected = [0, 0, 0, *(0.8 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)), 0.8]
    assert [pruning.amount_at(epoch) for epoch in range(7)] == pytest.approx(expected)
    assert [WeightPruning(0.8, epoch=1).amount_at(epoch) for epoch in range(3)] == [0, 0.8, 0.8]


def test_what_was_pruned_stays_so():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 3))
    for pruning in (WeightPruning(0.9, epoch=0, until=4), ChannelPruning(0.9, epoch=0, until=4)):
        model = copy.deepcopy(network)
        pruning.begin(model)
        shares, gone = [], torch.zeros(40, 50, dtype=torch.bool)
        for epoch in range(6):
            pruning.update(model, epoch)
            assert not model[0].weight[gone].any()
            gone = model[0].weight == 0
            shares.append(float(gone.float().mean()))
            with torch.no_grad():  # an optimizer moves the originals of what is masked too
                model[0].weight_orig.add_(torch.randn_like(model[0].weight_orig))
        assert shares == pytest.approx([pruning.amount_at(epoch) for epoch in range(6)], abs=0.5 / 40)


def tied():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("make", "pruning", "words"),
    [
        (lambda: LeNet5(**XNOR), WeightPruning(0.5), ["conv2", "XnorWeight makes something else of 0", "ternary"]),
        (lambda: LeNet5(**LSQ1), WeightPruning(0.5, ["linear3"]), ["linear3", "LsqWeight"]),
        (lambda: LeNet5(**LSQ1), ChannelPruning(0.5), ["linear3", "no batch norm"]),
        (lambda: LeNet5(), ChannelPruning(0.5, layers=["linear4"]), ["linear4", "outputs of the network"]),
        (lambda: LeNet5(), WeightPruning(0.5, ["conv9"]), ["'conv9' is no layer", "conv1, conv2, linear3, linear4"]),
        (lambda: ResNet20(**LSQ4), ChannelPruning(0.5, layers=["conv1"]), ["conv1: its channels cannot be pruned"]),
        (tied, ChannelPruning(0.5), ["Sequential has no layer that could be pruned so"]),
        (lambda: nn.Sequential(nn.ReLU()), WeightPruning(0.5), ["has no layer"]),
    ],
)
def test_what_cannot_be_pruned_is_named(make, pruning, words):
    with pytest.raises(ValueError) as error:
        pruning.begin(make())
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 0.0}, "amount must be a share"),
        ({"amount": 1}, "amount must be a share"),
        ({"epoch": -1}, "epoch must be at least 0"),
        ({"epoch": 2, "until": 1}, "until must be at least 2"),
        ({"layers": "conv1"}, "a list of dotted paths"),
        ({"norm": 3}, "norm must be 1, 2 or inf"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ChannelPruning(**{"amount": 0.5} | options)


def test_a_weight_that_is_pruned_already_is_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    WeightPruning(0.5).begin(network)
    with pytest.raises(ValueError, match="0: its weight is pruned or parametrized already"):
        WeightPruning(0.5).begin(network)


# -- training ---------------------------------------------------------------------------------------------------------


class Stop(Callback):
    """Ends training as a signal does, after so many epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


def trained(folder, pruning, quantizers=LSQ4, epochs=3, callbacks=(), **options):
    torch.manual_seed(0)
    network = DigitsCNN(width=4, **quantizers)
    classifier = partial(Classifier, optimizer=partial(torch.optim.Adam, lr=0.01))
    outcome = train(classifier, network, digits(), folder, epochs=epochs, batch_size=200, seed=0, pruning=pruning,
                    trainer={"accelerator": "cpu", "enable_progress_bar": False}, callbacks=callbacks,
                    **options)  # fmt: skip
    return network, outcome


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", [WeightPruning, ChannelPruning])
def test_an_interrupted_run_ends_with_the_same_weights_and_masks(kind, ema, tmp_path):
    pruning = partial(kind, 0.5, epoch=1, until=2)
    whole, outcome = trained(tmp_path / "whole", pruning(), ema=ema, callbacks=[Checkup(tmp_path / "whole", 1)])
    for epochs in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", pruning(), ema=ema, callbacks=[Stop(epochs)])
    parts, again = trained(tmp_path / "parts", pruning(), ema=ema)
    assert again.interruptions == 2
    assert again.test_accuracy == outcome.test_accuracy
    for (name, value), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    masks = [
        read_checkpoint(tmp_path / folder)["state_dict"]["network.conv2.weight_mask"] for folder in ("whole", "parts")
    ]
    assert torch.equal(*masks)
    assert float((masks[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.13)
    loaded = load_network(DigitsCNN(width=4, **LSQ4), tmp_path / "whole")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert not loaded.conv2.weight[masks[0] == 0].any()


def test_a_checkpoint_without_masks_is_another_networks(tmp_path):
    trained(tmp_path, None, epochs=1)
    with pytest.raises(RunError, match="is of another network"):
        trained(tmp_path, WeightPruning(0.5))


def test_pruning_that_would_never_happen_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are 2 epochs"):
        trained(tmp_path, WeightPruning(0.5, epoch=1, until=2), epochs=2)


# -- narrower networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_a_narrower_network_answers_like_the_masked_one_and_converts(name):
    torch.manual_seed(0)
    x = torch.randn(32, 1, 28, 28)
    without_zero = name in ("dorefa2", "abc", "adabin")
    pruning = ChannelPruning(0.5, layers=["conv1", "conv2"] if without_zero else None)
    network = masked(LeNet5(**PAIRS[name]), x, pruning)
    with torch.no_grad():
        expected = network(x)
        narrow, widths, kept = remove_dead_channels(network, x)
        assert torch.equal(network(x), expected)  # it is not changed
        assert widths.items() >= {"conv1": (20, 10), "conv2": (50, 25)}.items()
        assert not kept
        assert narrow.conv2.weight.shape == (25, 10, 5, 5)
        assert narrow.norm3.num_features == 25
        assert narrow.linear3.in_features == 400
        torch.testing.assert_close(narrow(x), expected, rtol=1e-4, atol=1e-4)
    if name not in ("fp32", "lsq4", "xnor", "abc"):
        return
    pruning.end(network)
    packed, whole = bnn.convert(narrow, x[:1]), bnn.convert(network, x[:1])
    report = bnn.check_parity(narrow, packed, x)
    assert report.ok, report
    assert packed.nbytes < (0.65 if without_zero else 0.35) * whole.nbytes


def test_integers_stay_the_same_bit_for_bit_where_the_constants_are_zero():
    torch.manual_seed(0)
    x = torch.randn(16, 8, 9, 9)
    network = nn.Sequential(
        QuantConv2d(8, 12, 3, padding=1, **LSQ4),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        QuantConv2d(12, 6, 3, padding=1, **LSQ4),
    )
    network = masked(network, x, ChannelPruning(0.5))
    with torch.no_grad():
        narrow, widths, _ = remove_dead_channels(network, x)
        assert widths == {"0": (12, 6)}
        assert torch.equal(narrow(x), network(x))


def constant(network, value):
    """Give channels 1 and 3 of a batch norm a constant."""
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[[1, 3]] = 0
        norm.bias[[1, 3]] = value
    return network.eval()


@pytest.mark.parametrize(
    ("value", "options", "leaves"),
    [
        (0.5, {}, True),
        (0.5, {"padding": 1}, False),
        (0.0, {"padding": 1}, True),
        (-0.5, {"padding": 1}, True),  # the ReLU makes it 0
        (0.5, {"padding": 1, "padding_mode": "replicate"}, True),
        (0.5, {"padding": "same"}, False),
        (0.5, {"padding": 2, "dilation": 2, "padding_mode": "circular"}, True),
        (0.5, {"bias": False}, True),
    ],
)
def test_a_constant_leaves_where_that_is_exact(value, options, leaves):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    reader = nn.Conv2d(5, 2, 3, **options)
    network = constant(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), reader), value)
    narrow, widths, kept = remove_dead_channels(network, x)
    assert widths == ({"0": (5, 3)} if leaves else {})
    assert ("pads its input" in kept.get("0", "")) == (not leaves)
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pad_value", "leaves"), [(1.0, True), (-1.0, False), (0.0, False)])
def test_a_constant_leaves_where_the_padding_has_its_value(pad_value, leaves):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    reader = QuantConv2d(5, 2, 3, padding=1, pad_value=pad_value, **XNOR)
    network = constant(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), reader), 0.5)
    narrow, widths, _ = remove_dead_channels(network, x)
    assert bool(widths) == leaves
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), network(x), rtol=1e-5, atol=1e-5)


def test_average_pooling_with_padding_makes_a_constant_uneven():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    for counts, leaves in ((True, False), (False, True)):
        pool = nn.AvgPool2d(3, 2, 1, count_include_pad=counts)
        network = constant(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), pool, nn.Conv2d(5, 2, 1)), 0.5)
        narrow, widths, _ = remove_dead_channels(network, x)
        assert bool(widths) == leaves
        with torch.no_grad():
            torch.testing.assert_close(narrow(x), network(x), rtol=1e-5, atol=1e-6)


class Joins(nn.Module):
    """A layer whose channels are added to others, or joined with them, before the next layer."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(8 if join == "cat" else 4, 2, 3)
        with torch.no_grad():
            self.one.weight[0] = 0

    def forward(self, x):
        a, b = self.one(x), self.two(x)
        return self.last(torch.cat([a, b], 1) if self.join == "cat" else a + b if self.join == "add" else a.relu())


@pytest.mark.parametrize(
    ("join", "word"), [("cat", "joined with others"), ("add", "joined with others"), ("none", None)]
)
def test_sums_and_joins_keep_their_channels(join, word):
    x = torch.randn(2, 3, 8, 8)
    network = Joins(join).eval()
    narrow, widths, kept = remove_dead_channels(network, x)
    assert (widths.get("one"), "one" in kept) == ((None, True) if word else ((4, 3), False))
    assert word is None or word in kept["one"]
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), network(x))


@pytest.mark.parametrize(
    ("quantizers", "word"),
    [
        (XNOR | {"input_scale": True}, "scales its inputs by the mean of all channels"),
        (LSQ4 | {"input_quantizer": partial(AbsmaxActivation, bits=8)}, "looks at all channels"),
    ],
)
def test_a_reader_that_looks_at_all_channels_keeps_them(quantizers, word):
    x = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), QuantConv2d(5, 2, 3, **quantizers))
    network = constant(run_once(network, x), 0.5)
    narrow, widths, kept = remove_dead_channels(network, x)
    assert widths == {}
    assert word in kept["0"]
    with torch.no_grad():
        assert torch.equal(narrow(x), network(x))


def test_channels_that_nobody_uses_leave_and_so_do_those_before_them():
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        network[4].weight[:, 2] = 0  # channel 2 of the middle layer is not used,
        network[2].weight[[0, 1, 3], 4] = 0  # which alone uses channel 4 of the first
        narrow, widths, _ = remove_dead_channels(network, x)
        assert widths == {"2": (4, 3)}
        torch.testing.assert_close(narrow(x), network(x))
        narrow, widths, _ = remove_dead_channels(narrow, x)
        assert widths == {"0": (5, 4)}
        torch.testing.assert_close(narrow(x), network(x))


@pytest.mark.parametrize(
    ("conv", "shape"), [(QuantConv1d, (4, 3, 20)), (QuantConv2d, (4, 3, 9, 9)), (QuantConv3d, (4, 3, 6, 6, 6))]
)
def test_convolutions_of_every_number_of_axes_become_narrower(conv, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    network = nn.Sequential(conv(3, 8, 3, **LSQ4), nn.ReLU(), conv(8, 4, 3, **LSQ4), nn.Flatten())
    network = masked(network, x, ChannelPruning(0.25))
    with torch.no_grad():
        narrow, widths, _ = remove_dead_channels(network, x)
        assert widths == {"0": (8, 6)}
        assert torch.equal(narrow(x), network(x))


def test_tokens_keep_their_channels_on_the_last_axis():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6)
    network = nn.Sequential(QuantLinear(6, 8, **LSQ4), nn.GELU(), QuantLinear(8, 3, **LSQ4))
    network = masked(network, x, ChannelPruning(0.5))
    with torch.no_grad():
        narrow, widths, _ = remove_dead_channels(network, x)
        assert widths == {"0": (8, 4)}
        torch.testing.assert_close(narrow(x), network(x))


def test_the_inner_channels_of_residual_blocks_leave():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    network = masked(ResNet8(**LSQ4), x, ChannelPruning(0.5))
    narrow, widths, _ = remove_dead_channels(network, x)
    assert widths == {"blocks.0.conv1": (16, 8), "blocks.1.conv1": (32, 16), "blocks.2.conv1": (64, 32)}
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), network(x), rtol=1e-4, atol=1e-4)


class Functional(nn.Module):
    """Layers with functions and methods of tensors between them."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.three, self.four = nn.Linear(8 * 4, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.one(x))), 2)
        x = torch.flatten(F.adaptive_avg_pool2d(F.hardswish(self.two(x)), 2), 1)
        return self.four(self.three(x).relu())


def test_functions_and_methods_between_layers_are_followed():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 12, 12)
    network = masked(Functional(), x, ChannelPruning(0.5))
    with torch.no_grad():
        network.norm.bias_mask.fill_(1)
        network.norm.bias_orig.fill_(0.7)  # constants that are not 0
        narrow, widths, _ = remove_dead_channels(network.eval(), x)
        assert widths == {"one": (6, 3), "two": (8, 4), "three": (10, 5)}
        torch.testing.assert_close(narrow(x), network(x), rtol=1e-5, atol=1e-6)


def test_one_channel_stays_where_all_are_dead():
    x = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        narrow, widths, _ = remove_dead_channels(network, x)
        assert widths == {"0": (5, 1)}
        torch.testing.assert_close(narrow(x), network(x))


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(ValueError, match="in train mode"):
        remove_dead_channels(LeNet5(), torch.zeros(1, 1, 28, 28))


def test_full_precision_is_no_quantizer_to_freeze():
    """Layers that do not quantize keep their latent weights."""
    x = torch.randn(4, 1, 28, 28)
    narrow = remove_dead_channels(masked(LeNet5(), x, ChannelPruning(0.5)), x).network
    assert isinstance(narrow.linear3.weight_quantizer, FullPrecision)
