"""Options of training against their definitions: averaged weights, accumulation, clipping, precision, compilation.

And what ends it early: a loss that is not finite, a disk that is full.
"""

import json
import resource
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.utils import parameters_to_vector

import bnn
from bnn.data import digits
from bnn.doctor import records_of
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import DigitsCNN
from bnn.quantizers import FullPrecision, LsqActivation, LsqWeight, SteSign, XnorWeight
from bnn.training import REPORT, Checkup, Classifier, DivergenceError, RunError, load_network, read_checkpoint, train
from bnn.training.divergence import where_not_finite

XNOR = {"weight_quantizer": XnorWeight, "input_quantizer": SteSign}
LSQ = {"weight_quantizer": partial(LsqWeight, bits=2), "input_quantizer": partial(LsqActivation, bits=2, signed=True)}
FP32 = {"weight_quantizer": FullPrecision, "input_quantizer": FullPrecision}
SGD = partial(torch.optim.SGD, lr=0.05)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def network(seed=0, **quantizers):
    torch.manual_seed(seed)
    return DigitsCNN(width=4, **(quantizers or XNOR))


def run(net, folder, *callbacks, epochs=1, batch_size=400, ema=None, optimizer=SGD, trainer=None, **options):
    classifier = partial(Classifier, optimizer=optimizer, **options)
    return train(classifier, net, digits(), folder, epochs=epochs, batch_size=batch_size, seed=0,
                 trainer=QUIET | (trainer or {}), callbacks=callbacks, ema=ema)  # fmt: skip


class States(Callback):
    """The network's state after every step of the optimizer."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.seen):
            self.seen.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


# -- averaged weights -------------------------------------------------------------------------------------------------


def averaged(states, decay):
    """The formula, entry by entry: of parameters and of the statistics of batch norm."""
    average = dict(states[0])
    for state in states[1:]:
        for name, value in state.items():
            moves = value.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * value if moves else value
    return average


def test_the_average_of_weights_is_evaluated_kept_and_converted(tmp_path):
    states, net = States(), network(**LSQ)
    outcome = run(net, tmp_path, states, epochs=2, ema=0.8)
    expected = averaged(states.seen, 0.8)
    kept = load_network(network(1, **LSQ), tmp_path)
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
        assert torch.equal(net.state_dict()[name], value)
    steps = [name for name in expected if name.endswith("quantizer.step")]
    assert len(steps) == 6
    assert all(expected[name] != states.seen[-1][name] for name in steps)  # learned, so not drawn from data again
    current = read_checkpoint(tmp_path)["current_model_state"]
    assert all(torch.equal(value, current[f"network.{name}"]) for name, value in states.seen[-1].items())
    data = digits()
    images = data.normalizer()(data.test.images)
    with torch.no_grad():
        logits = kept(images)
    assert outcome.test_accuracy == pytest.approx(float((logits.argmax(1) == data.test.labels).float().mean()))
    packed = bnn.convert(kept, images[:4])
    torch.testing.assert_close(torch.from_numpy(packed(images[:50].numpy())), logits[:50], rtol=1e-4, atol=1e-4)


class Stop(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("quantizers", [LSQ, XNOR], ids=["lsq", "xnor"])
def test_an_average_goes_on_where_it_was(quantizers, tmp_path):
    whole, parts = network(**quantizers), network(**quantizers)
    outcome = run(whole, tmp_path / "whole", epochs=2, ema=0.8)
    with pytest.raises(KeyboardInterrupt):
        run(network(**quantizers), tmp_path / "parts", Stop(), epochs=2, ema=0.8)
    run(parts, tmp_path / "parts", epochs=2, ema=0.8)
    ended = network(**quantizers)  # its result was lost: measured again
    again = run(ended, tmp_path / "parts", epochs=2, ema=0.8)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
        assert torch.equal(ended.state_dict()[name], value), name
    assert (again.validation_accuracy, again.test_accuracy) == (outcome.validation_accuracy, outcome.test_accuracy)


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan"), True, "0.9"])
def test_a_decay_that_is_none_is_refused(decay, tmp_path):
    with pytest.raises(ValueError, match="ema must be a decay between 0 and 1"):
        run(network(), tmp_path, ema=decay)


def test_a_checkpoint_without_an_average_is_refused(tmp_path):
    run(network(), tmp_path)
    with pytest.raises(RunError, match="holds no average of weights"):
        run(network(), tmp_path, epochs=2, ema=0.9)
    run(network(), tmp_path / "averaged", ema=0.9)
    with pytest.raises(RunError, match="holds the average of weights"):
        run(network(), tmp_path / "averaged", epochs=2)


# -- accumulation and clipping ----------------------------------------------------------------------------------------


def without_batch_norm():
    """Batch norm sees each batch by itself, so a network with it is another one at another batch size."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), QuantConv2d(4, 4, 3, **XNOR), nn.Flatten(), QuantLinear(64, 10, **XNOR)
    )  # fmt: skip


@pytest.mark.parametrize("batches", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulation_equals_a_larger_batch(batches, tmp_path):
    """Of 1,197 images the last step has fewer batches, and the last batch fewer images."""
    large, small = without_batch_norm().double(), without_batch_norm().double()
    states = States()
    for net, folder, size, count in ((large, "large", 32 * batches, 1), (small, "small", 32, batches)):
        options = {"precision": "64-true", "accumulate_grad_batches": count}
        run(net, tmp_path / folder, states, batch_size=size, trainer=options, optimizer=partial(SGD, momentum=0.9))
    assert len(states.seen) == -(-1197 // (32 * batches))  # as many steps with either
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert not torch.equal(large[0].weight, without_batch_norm().double()[0].weight)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradients_are_clipped(accumulated, tmp_path):
    """With a learning rate of 1 and no momentum a step is as long as its gradient."""
    net, states = without_batch_norm(), States()
    before = parameters_to_vector(net.parameters()).detach().clone()
    options = {"gradient_clip_val": 0.01, "accumulate_grad_batches": accumulated}
    run(net, tmp_path / "norm", states, trainer=options, optimizer=partial(SGD, lr=1.0))
    for state in states.seen:
        after = parameters_to_vector([state[name] for name, _ in net.named_parameters()])
        assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
        before = after
    net, states = without_batch_norm(), States()
    options |= {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.001}
    before = parameters_to_vector(net.parameters()).detach().clone()
    run(net, tmp_path / "value", states, trainer=options, optimizer=partial(SGD, lr=1.0))
    after = parameters_to_vector([states.seen[0][name] for name, _ in net.named_parameters()])
    assert float((after - before).abs().max()) == pytest.approx(0.001, rel=1e-3)


# -- precision and compilation ----------------------------------------------------------------------------------------


class Dtypes(Callback):
    """What the layers of a network return and the gradients they get in training."""

    def on_train_start(self, trainer, pl_module):
        self.outputs, self.gradients = {}, set()
        for name, module in pl_module.network.named_modules():
            module.register_forward_hook(partial(self.note, name))

    def note(self, name, module, arguments, output):
        self.outputs.setdefault(name, output.dtype)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients |= {p.grad.dtype for p in pl_module.parameters() if p.grad is not None}


def test_mixed_precision_keeps_parameters_and_statistics_in_float32(tmp_path):
    net, seen = network(**LSQ), Dtypes()
    outcome = run(net, tmp_path, seen, ema=0.5, trainer={"precision": "bf16-mixed"})
    assert {seen.outputs[name] for name in ("conv1", "conv2", "linear4")} == {torch.bfloat16}
    assert seen.gradients == {torch.float32}
    checkpoint = read_checkpoint(tmp_path)
    for state in (net.state_dict(), checkpoint["state_dict"], checkpoint["current_model_state"]):
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    data = digits()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net.eval()(data.normalizer()(data.test.images))
    assert outcome.test_accuracy == pytest.approx(float((logits.argmax(1) == data.test.labels).float().mean()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own compiler does so
@pytest.mark.parametrize(
    ("backend", "quantizers"),
    [
        ("eager", XNOR),
        pytest.param("eager", LSQ, marks=pytest.mark.slow),
        # Inductor rounds otherwise, and a sign that flips changes all that follows: the network in full precision.
        pytest.param(True, FP32, marks=pytest.mark.slow),
    ],
    ids=["eager", "eager-lsq", "inductor"],
)
def test_a_compiled_network_trains_alike(backend, quantizers, tmp_path, monkeypatch):
    calls = []
    original = torch.compile

    def counting(function, **options):
        compiled = original(function, **options)
        return lambda images: calls.append(options["backend"]) or compiled(images)

    monkeypatch.setattr(torch, "compile", counting)
    plain, compiled = network(**quantizers), network(**quantizers)
    run(plain, tmp_path / "plain", epochs=2)
    assert not calls
    run(compiled, tmp_path / "compiled", epochs=2, compile=backend)
    assert calls == ["inductor" if backend is True else backend] * 6
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    names = [set(read_checkpoint(tmp_path / name)["state_dict"]) for name in ("compiled", "plain")]
    assert names[0] == names[1]


def test_maps_with_channels_last_train_alike_and_go_on_bit_for_bit(tmp_path):
    plain, here, resumed = (network(**FP32) for _ in range(3))
    run(plain, tmp_path / "plain", epochs=2)
    layouts = []
    kept = here.conv2.register_forward_hook(lambda _, inputs, maps: layouts.append((inputs[0], maps)))
    run(here, tmp_path / "here", epochs=2, channels_last=True)
    kept.remove()
    trained = [pair for pair in layouts if pair[1].requires_grad]
    assert len(trained) == 6
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for pair in trained for maps in pair)
    for name, value in plain.state_dict().items():  # wider than rounding, which may decide about a rectifier
        torch.testing.assert_close(here.state_dict()[name], value, rtol=1e-3, atol=3e-3)
    with pytest.raises(KeyboardInterrupt):
        run(network(**FP32), tmp_path / "resumed", Stop(), epochs=2, channels_last=True)
    run(resumed, tmp_path / "resumed", epochs=2, channels_last=True)
    for name, value in here.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(parameter.is_contiguous() for parameter in here.parameters())


def test_compiled_steps_keep_no_bits():
    with pytest.raises(ValueError, match="compile and pack_activations"):
        Classifier(network(), SGD, compile=True, pack_activations=True)


# -- a loss that is not finite ----------------------------------------------------------------------------------------


class Breaks(Callback):
    """Multiplies the output of a layer, or its weight, by infinity from a step on."""

    def __init__(self, layer, what, step):
        self.layer, self.what, self.step = layer, what, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        layer = pl_module.network.get_submodule(self.layer)
        if self.what == "weight":
            layer.weight.data[0] = float("inf")
        else:
            layer.register_forward_hook(lambda module, arguments, output: output * float("inf"))


@pytest.mark.parametrize(
    ("what", "where"),
    [("weight", r"the values of conv3.weight, which"), ("output", r"the output of conv3 \(QuantConv2d\)")],
)
def test_training_stops_at_the_step_and_names_the_layer_that_is_not_finite(what, where, tmp_path):
    checkup = Checkup(tmp_path, every=1, classes=10)
    with pytest.raises(DivergenceError, match=rf"epoch 1, step 2 \(both from 0\); it begins in {where}") as raised:
        run(network(), tmp_path, checkup, Breaks("conv3", what, 5), epochs=2)
    content = json.loads((tmp_path / REPORT).read_text())
    assert [record.step for record in records_of(content)] == [0, 1, 2, 3, 4]
    said = [f"{found['layer']}: {found['text']}; {found['advice']}".removeprefix(": ") for found in content["findings"]]
    assert list(raised.value.findings) == said
    assert all(sentence in str(raised.value) for sentence in said[:4])
    assert read_checkpoint(tmp_path)["epoch"] == 0  # the last good one


def test_where_a_network_is_not_finite():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)))
    x = torch.ones(4, 2)
    assert where_not_finite(net, x) == "the loss"
    assert where_not_finite(net, x * float("nan")) == "the inputs"
    net[1][0].weight.data.fill_(1e38)
    net[0].weight.data.fill_(1e10)
    assert where_not_finite(net, x) == "the output of 1.0 (Linear)"
    net[1][0].bias.data[0] = float("nan")
    net[0].bias.data[0] = float("nan")
    assert where_not_finite(net, x) == "the values of 0.bias and of 1 more parameters, which the step before made"


# -- a disk that is full ----------------------------------------------------------------------------------------------


class Full(Callback):
    """From an epoch on, files can have 1000 bytes: that is how a full disk looks to the one who writes."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_from_it(tmp_path):
    undisturbed, disturbed = network(), network()
    run(undisturbed, tmp_path / "undisturbed", epochs=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "disturbed"
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            run(network(), folder, Full(1), epochs=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(folder)["epoch"] == 0
    assert [file.name for file in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    run(disturbed, folder, epochs=3)
    assert torch.equal(parameters_to_vector(disturbed.parameters()), parameters_to_vector(undisturbed.parameters()))
