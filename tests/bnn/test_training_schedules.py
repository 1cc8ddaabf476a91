"""Curves, schedules of modules and optimizers, and that an interrupted run goes on with the same values."""

import math
from functools import partial

import pytest
import quantizer_configs as configs
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from bnn.data import digits
from bnn.models import DigitsCNN
from bnn.optimizers import Bop, CompositeOptimizer
from bnn.quantizers import SteSign
from bnn.training import (
    Classifier,
    Cosine,
    CosineRise,
    Exponential,
    ExponentialRise,
    Linear,
    ModuleSchedule,
    OptimizerSchedule,
    Scheduling,
    Sigmoid,
    Step,
    curve_lr,
    train,
)

BOP = partial(
    CompositeOptimizer, optimizers={"latent": partial(Bop, gamma=0.01), "rest": partial(torch.optim.Adam, lr=0.01)}
)


# -- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Linear(2, 4), {0: 2, 0.5: 3, 1: 4}),
        (Linear(2, 4, begin_at=0.5), {0: 2, 0.5: 2, 0.75: 3, 1: 4}),
        (Linear(2, 4, end_at=0.5), {0.25: 3, 0.5: 4, 0.9: 4}),
        (Exponential(1e-2, 10), {0: 1e-2, 1 / 3: 0.1, 2 / 3: 1, 1: 10}),
        (Exponential(-1, -100), {0.5: -10}),
        (Cosine(1, 0), {0: 1, 1 / 3: 0.75, 0.5: 0.5, 1: 0}),
        (CosineRise(1, 3), {0: 1, 0.5: 3 - 2**0.5, 2 / 3: 2, 1: 3}),
        (Sigmoid(2, 4), {0: 2, 0.5: 3, 1: 4, 0.7: 3 + math.tanh(1) / math.tanh(2.5)}),
        (Sigmoid(0, 1, end_at=0.5), {0.25: 0.5, 0.5: 1}),
        (Step(1, 0.5, at=[0.25, 0.5]), {0: 1, 0.24: 1, 0.25: 0.5, 0.5: 0.25, 1: 0.25}),
    ],
)
def test_curves(curve, values):
    for p, value in values.items():
        assert curve(p) == pytest.approx(value)


def test_ir_nets_temperature_is_the_exponential():
    """t = T_min 10^((e / E) log10(T_max / T_min)), as the paper prints it."""
    low, high = 1e-3, 10
    for epoch in range(400):
        t = low * 10 ** (epoch / 400 * math.log10(high / low))
        assert Exponential(low, high)(epoch / 400) == pytest.approx(t)


def test_recus_threshold_rises_as_in_the_authors_code():
    """tau = A e^(epoch / epochs) + B with A = (max - min) / (e - 1), B = min - A."""
    a = (0.99 - 0.85) / (math.e - 1)
    for epoch in range(0, 601, 50):
        assert ExponentialRise(0.85, 0.99)(epoch / 600) == pytest.approx(a * math.exp(epoch / 600) + 0.85 - a)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Exponential(0, 1), "of one sign"),
        (lambda: Linear(0, 1, begin_at=0.5, end_at=0.5), "begin_at"),
        (lambda: Sigmoid(0, 1, steepness=0), "steepness must be positive"),
        (lambda: Step(1, 0.1, at=[30]), "shares of training"),
        (lambda: curve_lr(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), Cosine(1, 0), 5, 5), "warmup"),
        (lambda: Scheduling([ModuleSchedule("clip", Linear(0, 1), by="batch")]), "by must be"),
    ],
)
def test_bad_curves(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_learning_rate_by_a_curve():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 2.0)
    scheduler = curve_lr(optimizer, Linear(1, 0), epochs=6, warmup=2)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2 / 3, 4 / 3, 2, 1.5, 1, 0.5])


# -- schedules --------------------------------------------------------------------------------------------------------


class WithBuffer(SteSign):
    """A quantizer with a buffer and a parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("tau", torch.tensor(0.0))
        self.learned = nn.Parameter(torch.tensor(0.0))


def test_modules_by_type_and_name():
    model = DigitsCNN(width=4, weight_quantizer=SteSign, input_quantizer=WithBuffer)
    ModuleSchedule("clip", Linear(1, 3), of="SteSign", name="conv*").set(model, [], 0.5)
    assert model.conv2.weight_quantizer.clip == model.conv3.weight_quantizer.clip == 2
    assert model.linear4.weight_quantizer.clip == model.conv2.input_quantizer.clip == 1
    buffer = model.conv3.input_quantizer.tau
    ModuleSchedule("tau", Linear(0, 1)).set(model, [], 0.25)
    assert model.conv3.input_quantizer.tau is buffer
    assert buffer.item() == model.linear4.input_quantizer.tau.item() == 0.25


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (ModuleSchedule("tau", Linear(0, 1), of="EDE"), "no EDE named .* SteSign"),
        (ModuleSchedule("tau", Linear(0, 1), of="SteSign"), "SteSign has no attribute 'tau'"),
        (ModuleSchedule("clip", Linear(0, 1), name="layer*"), r"no module named 'layer\*'"),
        (ModuleSchedule("learned", Linear(0, 1)), "is learned"),
        (OptimizerSchedule("gama", Linear(0, 1)), "no parameter group has the option 'gama'; options are .*gamma"),
        (OptimizerSchedule("gamma", Linear(0, 1), role="weight"), "of role 'weight'"),
    ],
)
def test_schedules_that_find_nothing(schedule, words):
    model = DigitsCNN(width=4, weight_quantizer=SteSign, input_quantizer=WithBuffer)
    optimizer = Classifier(model, BOP).configure_optimizers()
    with pytest.raises(ValueError, match=words):
        schedule.set(model, [optimizer], 0.5)


class Watch(Callback):
    """Notes the scheduled values at every step, and can stop the run."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (gamma,) = [g["gamma"] for g in trainer.optimizers[0].param_groups if "gamma" in g]
        self.seen.append((trainer.current_epoch, gamma, pl_module.network.conv2.input_quantizer.clip))

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.stop:
            raise KeyboardInterrupt


def scheduled(folder, stop=None, **options):
    torch.manual_seed(0)
    network = DigitsCNN(width=4, weight_quantizer=SteSign, input_quantizer=SteSign)
    watch = Watch(stop)
    schedules = [
        OptimizerSchedule("gamma", Exponential(1e-2, 1e-4)),
        ModuleSchedule("clip", Linear(2, 1), name="conv2.input_quantizer", by="step"),
    ]
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    train(partial(Classifier, optimizer=BOP, **options), network, digits(), folder, epochs=4, batch_size=600, seed=0,
          trainer=quiet, callbacks=[Scheduling(schedules), watch])  # fmt: skip
    return network, watch.seen


def test_a_run_that_is_interrupted_goes_on_with_the_same_values(tmp_path):
    whole, seen = scheduled(tmp_path / "whole")
    assert [(epoch, round(gamma, 9)) for epoch, gamma, _ in seen[::2]] == [
        (e, round(1e-2 * 100 ** (-e / 4), 9)) for e in range(4)
    ]
    assert [clip for _, _, clip in seen] == pytest.approx([2 - step / 8 for step in range(8)])
    with pytest.raises(KeyboardInterrupt):
        scheduled(tmp_path / "parts", stop=2)
    assert (tmp_path / "parts" / "checkpoints" / "last.ckpt").exists()
    parts, rest = scheduled(tmp_path / "parts")
    assert rest == seen[4:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert set(whole.conv2.weight.unique().tolist()) == {-1.0, 1.0}


class Stop(Callback):
    """Stops a run at the beginning of its second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ["bnn_stochastic", "fda_noise", "lqnet2", "lsq2", "rbnn", "tbn"])
def test_methods_with_a_state_of_their_own_go_on_the_same(name, tmp_path):
    """Random draws, learned scales that began with the first batch, bases and thresholds that follow the data."""
    weight, given = configs.factories()[name]

    def run(folder, *callbacks):
        torch.manual_seed(0)
        network = DigitsCNN(width=4, weight_quantizer=weight, input_quantizer=given)
        adam = partial(torch.optim.Adam, lr=0.01)
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        train(partial(Classifier, optimizer=adam), network, digits(), folder, epochs=2, batch_size=600, seed=0,
              trainer=quiet, callbacks=callbacks)  # fmt: skip
        return network.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Stop())
    parts = run(tmp_path / "parts")
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_mixed_precision_steps_by_bop(tmp_path):
    network = DigitsCNN(width=4, weight_quantizer=SteSign, input_quantizer=SteSign)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "bf16-mixed", "gradient_clip_val": 1.0}
    outcome = train(partial(Classifier, optimizer=BOP), network, digits(), tmp_path, epochs=3, batch_size=100, seed=0,
                    trainer=options)  # fmt: skip
    assert set(network.conv2.weight.unique().tolist()) == {-1.0, 1.0}
    assert outcome.train_accuracy > 0.3


@pytest.mark.parametrize("option", [{"center_latents": True}, {"latent_clip": 0.5}])
def test_bop_has_no_latents_to_move(option, tmp_path):
    with pytest.raises(ValueError, match="without latents"):
        scheduled(tmp_path, **option)
