"""Damping and freezing of oscillating weights against the definitions, written plainly for one weight."""

import copy
import io
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradients import differences
from lightning.pytorch.callbacks import Callback
from torch import nn

from bnn.data import digits
from bnn.layers import QuantConv2d, QuantConvTranspose2d, QuantLinear
from bnn.models import DigitsCNN
from bnn.optimizers import CompositeOptimizer, Proximal
from bnn.quantizers import (
    AdaBinWeight,
    DoReFaWeight,
    LsqWeight,
    RelaxedWeight,
    SteSign,
    StretchedElasticWeight,
    XnorWeight,
)
from bnn.training import (
    Classifier,
    DampOscillations,
    FreezeOscillations,
    Linear,
    OptimizerSchedule,
    Scheduling,
    train,
)


def begun(callback, steps=100):
    callback.on_train_start(SimpleNamespace(estimated_stepping_batches=steps), None)
    return callback


def constant(value):
    return Linear(value, value)


def lsq_layer(weights, step=1.0, bits=3):
    layer = QuantLinear(len(weights), 1, bias=False, weight_quantizer=partial(LsqWeight, bits))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.weight_quantizer.step.fill_(step)
        layer.weight_quantizer.initialized.fill_(True)
    return layer


@pytest.mark.parametrize("kind", [QuantLinear, QuantConv2d, QuantConvTranspose2d])
def test_damping_is_the_gradient_of_its_term(kind):
    torch.manual_seed(0)
    quantizer = partial(LsqWeight, 3, per_channel=True)
    layer = (kind(5, 4, weight_quantizer=quantizer) if kind is QuantLinear
             else kind(3, 4, 2, weight_quantizer=quantizer)).double()  # fmt: skip
    steps = torch.linspace(0.1, 0.4, 4).double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight_quantizer.step.copy_(steps)
        layer.weight_quantizer.initialized.fill_(True)
    axis = 1 if kind is QuantConvTranspose2d else 0
    s = np.reshape(steps.numpy(), [-1 if a == axis else 1 for a in range(layer.weight.ndim)])
    w = layer.weight.detach().numpy()
    levels, n = np.round(np.clip(w / s, -4, 3)), w.size / 4
    expected = differences(lambda u: 0.7 * (((levels * s) - np.clip(u, -4 * s, 3 * s)) ** 2).sum() / n, w)
    layer.weight.grad = torch.ones_like(layer.weight)
    damp = begun(DampOscillations(Linear(0.0, 1.4)))
    damp.on_before_optimizer_step(SimpleNamespace(global_step=50), SimpleNamespace(network=layer), None)
    np.testing.assert_allclose(layer.weight.grad - 1, expected, rtol=1e-5, atol=1e-8)


class Plain:
    """Algorithm 1 for one weight, in plain numbers."""

    def __init__(self, level, momentum):
        self.level, self.momentum, self.mean = level, momentum, float(level)
        self.direction, self.frequency, self.frozen = 0, 0.0, False

    def see(self, level, threshold):
        if self.frozen:
            return
        change = int(np.sign(level - self.level))
        oscillated = change * self.direction == -1
        self.frequency = self.momentum * oscillated + (1 - self.momentum) * self.frequency
        self.direction = change or self.direction
        self.level = level
        if self.frequency > threshold:
            self.frozen, self.level = True, round(self.mean)
        self.mean = self.momentum * level + (1 - self.momentum) * self.mean


def run(layer, callback, updates, first=0):
    """Each update is added to the weights as an optimizer would, then the callback sees them; returns all weights."""
    seen = []
    for step, update in enumerate(updates, start=first + 1):
        with torch.no_grad():
            layer.weight.add_(update)
        trainer = SimpleNamespace(global_step=step)
        callback.on_train_batch_end(trainer, SimpleNamespace(network=layer), None, None, 0)
        seen.append(layer.weight.detach().clone())
    return seen


def test_freezing_follows_the_algorithm():
    torch.manual_seed(0)
    start = [0.45, 0.5, 2.4, -1.5, 0.0, 1.0]
    layer, momentum, threshold = lsq_layer(start), 0.1, 0.15
    callback = begun(FreezeOscillations(constant(threshold), momentum))
    updates = 0.3 * torch.randn(60, 1, 6)
    updates[:, :, 4:] = 0  # the last two rest
    plain = None
    weights = np.array(start, dtype=np.float32)
    frozen = {}
    for step in range(60):
        found = run(layer, callback, updates[step : step + 1], step)[0][0].numpy()
        weights = weights + updates[step, 0].numpy()
        for i in frozen:
            weights[i] = frozen[i]
        levels = np.round(np.clip(weights, -4, 3)).astype(int)
        if plain is None:
            plain = [Plain(level, momentum) for level in levels]
            continue
        for i, one in enumerate(plain):
            one.see(levels[i], threshold)
            if one.frozen:
                frozen[i] = weights[i] = one.level
        np.testing.assert_array_equal(found, weights)
    assert set(frozen) >= {0, 1} and not {4, 5} & set(frozen)
    assert callback.frozen() == {"weight": pytest.approx(len(frozen) / 6)}
    # What is fixed follows a step that is learned further on, at the same level.
    with torch.no_grad():
        layer.weight_quantizer.step.fill_(1.5)
    found = run(layer, callback, [torch.full((1, 6), 0.4)], 60)[0][0]
    for i, level in frozen.items():
        assert found[i] == 1.5 * level


def test_a_weight_that_the_estimator_sends_to_and_fro_comes_to_rest():
    """The loss (q(w) - 0.6)^2 has its least value between two levels, so the straight-through gradient changes sign."""

    def flips(callback, steps=200):
        layer = lsq_layer([0.45])
        optimizer = torch.optim.SGD([layer.weight], lr=0.05)
        levels = []
        for step in range(steps):
            optimizer.zero_grad()
            (layer(torch.ones(1, 1)) - 0.6).square().sum().backward()
            trainer, module = SimpleNamespace(global_step=step), SimpleNamespace(network=layer)
            if isinstance(callback, DampOscillations):
                callback.on_before_optimizer_step(trainer, module, optimizer)
            optimizer.step()
            if isinstance(callback, FreezeOscillations):
                callback.on_train_batch_end(SimpleNamespace(global_step=step + 1), module, None, None, 0)
            levels.append(float(layer.weight_quantizer(layer.weight).detach()))
        return sum(a != b for a, b in zip(levels[-100:], levels[-99:], strict=False))

    assert flips(None) > 30
    assert flips(begun(FreezeOscillations(constant(0.1), 0.02))) == 0
    assert flips(begun(DampOscillations(constant(5.0)))) == 0


def test_its_state_goes_round():
    torch.manual_seed(0)
    updates = 0.3 * torch.randn(40, 1, 5)
    layer, callback = lsq_layer([0.4] * 5), begun(FreezeOscillations(constant(0.1), 0.05))
    run(layer, callback, updates[:20])
    file = io.BytesIO()
    torch.save(callback.state_dict(), file)
    file.seek(0)
    again, restored = copy.deepcopy(layer), begun(FreezeOscillations(constant(0.1), 0.05))
    restored.load_state_dict(torch.load(file, weights_only=True))
    expected = run(layer, callback, updates[20:], 20)
    assert torch.equal(torch.stack(run(again, restored, updates[20:], 20)), torch.stack(expected))
    assert 0 < callback.frozen()["weight"] <= 1


def test_steps_are_counted_once_and_threshold_0_fixes_nothing():
    layer, callback = lsq_layer([0.4, 0.6]), begun(FreezeOscillations(constant(0.0), 0.5))
    updates = [torch.tensor([[0.2 * (-1) ** i, -0.2 * (-1) ** i]]) for i in range(10)]
    run(layer, callback, updates)
    before = copy.deepcopy(callback.state_dict())
    run(layer, callback, [torch.ones(1, 2)], 9)  # the step of before: gradients were accumulated
    assert torch.equal(callback.state_dict()["layers"]["weight"]["frequency"], before["layers"]["weight"]["frequency"])
    assert callback.frozen() == {"weight": 0.0}


def test_signs_and_stretched_levels_freeze_too_and_more_bits_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        QuantLinear(4, 4, weight_quantizer=XnorWeight),
        QuantLinear(4, 4, weight_quantizer=partial(StretchedElasticWeight, 4)),
        QuantLinear(4, 4, weight_quantizer=partial(LsqWeight, 8)),
    )
    net(torch.randn(3, 4))
    callback = begun(FreezeOscillations(constant(0.1), 0.2))
    for step in range(1, 30):
        with torch.no_grad():
            for layer in net:
                layer.weight.copy_(layer.weight.abs() * (-1) ** step)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), SimpleNamespace(network=net), None, None, 0)
    assert callback.frozen() == {"0.weight": 1.0, "1.weight": 1.0}


class Stop(Callback):
    """Stops a run at the beginning of its second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["freezing", "parq"])
def test_an_interrupted_run_goes_on_the_same(way, tmp_path):
    """What is frozen, and the latents behind relaxed weights, are in the checkpoint."""
    adam = partial(torch.optim.Adam, lr=0.05)
    proximal = {"latent": partial(Proximal, optimizer=adam, levels=4), "rest": adam}
    optimizer = adam if way == "freezing" else partial(CompositeOptimizer, optimizers=proximal)
    weight = partial(LsqWeight, 2) if way == "freezing" else partial(RelaxedWeight, 4)

    def run(folder, *callbacks):
        torch.manual_seed(0)
        network = DigitsCNN(width=4, weight_quantizer=weight, input_quantizer=SteSign)
        ours = FreezeOscillations(constant(0.2), 0.3)
        if way == "parq":
            ours = Scheduling([OptimizerSchedule("hardness", Linear(0, 1, end_at=0.9), "latent", "step")])
        train(partial(Classifier, optimizer=optimizer), network, digits(), folder, epochs=2, batch_size=200, seed=0,
              trainer={"accelerator": "cpu", "enable_progress_bar": False}, callbacks=[ours, *callbacks])  # fmt: skip
        return network.state_dict(), ours

    whole, ours = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Stop())
    parts, again = run(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    if way == "freezing":
        assert again.frozen() == ours.frozen()
        assert max(ours.frozen().values()) > 0
    else:
        assert len(whole["conv2.weight"].unique()) <= 4


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [(partial(DoReFaWeight, 4), "does not map a level times its scale"), (AdaBinWeight, "several scales or an offset")],
)
def test_weights_without_such_levels_are_refused(quantizer, words):
    torch.manual_seed(0)
    layer = QuantLinear(20, 4, weight_quantizer=quantizer)
    with pytest.raises(ValueError, match=rf"^weight: .*{words}"):
        run(layer, begun(FreezeOscillations(constant(0.1))), [torch.zeros(4, 20)])
    with pytest.raises(ValueError, match="momentum must lie"):
        FreezeOscillations(constant(0.1), momentum=1.0)
