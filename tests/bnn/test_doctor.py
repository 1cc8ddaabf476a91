"""Each metric against its closed form, each finding on a network made to have it, and that watching changes nothing."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import quantizer_configs as configs
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from bnn.data import digits
from bnn.doctor import KINDS, METRICS, Doctor, Record, findings, metrics, records_of, report
from bnn.layers import QuantConv2d, QuantLinear
from bnn.models import DigitsCNN
from bnn.optimizers import Bop
from bnn.quantizers import DoReFaActivation, Quantizer, SteSign, TernaryWeight, XnorWeight
from bnn.training import Checkup, Classifier, train

# -- metrics ----------------------------------------------------------------------------------------------------------


def test_codes_tell_quantized_values_apart():
    w = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    for quantizer in (SteSign(), TernaryWeight(), DoReFaActivation(bits=3)):
        planes = quantizer.planes(w)
        code, value = metrics.codes(planes), planes.value()
        assert torch.equal(
            code[:, None, :, None] == code[None, :, None], value[:, None, :, None] == value[None, :, None]
        )
        assert code.max() < 2**planes.bits


def test_flips():
    """Signs: the share; ternary: half for a step to or from 0; three bits: sevenths."""
    old, new = torch.tensor([-1.0, 1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, -2.0, 0.0])
    assert metrics.flips(SteSign().planes(old), SteSign().planes(new)).item() == 0.5
    assert metrics.flips(TernaryWeight().planes(old), TernaryWeight().planes(old * 5)).item() == 0
    ternary = (
        TernaryWeight().planes(torch.tensor([-1.0, 1.0, 0.0, 0.0])),
        TernaryWeight().planes(torch.tensor([1.0, 0, 0, 0])),
    )
    assert metrics.flips(*ternary).item() == pytest.approx((1 + 0.5) / 4)
    few = DoReFaActivation(bits=3)
    assert metrics.flips(
        few.planes(torch.tensor([0.0, 3 / 7])), few.planes(torch.tensor([1.0, 4 / 7]))
    ).item() == pytest.approx(4 / 7)


def test_saturated():
    assert metrics.saturated(torch.tensor([-2.0, -1.0, -0.99, 0.0, 1.0]), 1.0).item() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("counts", "bits"), [((8, 0), 1), ((4, 4), 1), ((6, 2), 1), ((2, 2, 4, 0), 2), ((2, 2, 2, 2), 2), ((1, 7), 1)]
)
def test_entropy(counts, bits):
    row = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    expected = -sum(c / 8 * math.log2(c / 8) for c in counts if c)
    assert metrics.entropy(row[None], bits).item() == pytest.approx(expected)
    both = torch.stack([row, torch.zeros_like(row)])
    assert metrics.entropy(both, bits).item() == pytest.approx(expected / 2)


def test_constant():
    assert metrics.constant(torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1]])).item() == 0.5


def test_distance():
    """XNOR-Net's error of a filter: 1 - (mean|W|)^2 / mean(W^2); 1 - 2/pi for normal, 1/4 for uniform weights."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, 200_000, generator=generator, dtype=torch.float64)
    uniform = torch.rand(4, 200_000, generator=generator, dtype=torch.float64) * 2 - 1
    for w, expected in ((normal, 1 - 2 / math.pi), (uniform, 0.25)):
        exact = (1 - w.abs().mean(1) ** 2 / w.square().mean(1)).mean().item()
        assert metrics.distance(w, torch.sign(w)).item() == pytest.approx(exact, rel=1e-9)
        assert exact == pytest.approx(expected, rel=0.01)
    assert metrics.distance(3 * torch.sign(normal), torch.sign(normal)).item() == pytest.approx(0, abs=1e-12)
    assert metrics.distance(normal, torch.zeros_like(normal)).item() == 1


def test_mismatch_of_the_straight_through_estimator():
    """Of sign, with |g| = 1: cos = sqrt(P(|x| <= h) / P(|x| <= clip)), and 0 mismatch at h = clip."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, generator=generator, dtype=torch.float64)
    g = torch.sign(torch.randn(100_000, generator=generator, dtype=torch.float64))
    assert metrics.gradient_mismatch(SteSign(), x, g, width=1.0).item() == pytest.approx(0, abs=1e-9)
    for clip, h in ((1.0, 0.5), (2.0, 0.1)):
        inside, window = ((x.abs() <= bound).double().mean().item() for bound in (h, clip))
        found = metrics.gradient_mismatch(SteSign(clip=clip), x, g, width=h).item()
        assert found == pytest.approx(1 - math.sqrt(inside / window), rel=1e-9)
    normal = metrics.gradient_mismatch(SteSign(clip=None), x, g).item()
    assert normal == pytest.approx(1 - math.sqrt(math.erf(0.5 / math.sqrt(2))), abs=0.01)


def test_mismatch_at_its_ends():
    x, g = torch.tensor([3.0, -3.0, 5.0]), torch.ones(3)
    assert math.isnan(metrics.gradient_mismatch(SteSign(), x, g, width=0.1))
    assert metrics.gradient_mismatch(SteSign(clip=None), x, g, width=0.1).item() == 1
    assert metrics.gradient_mismatch(XnorWeight(), torch.randn(4, 300), torch.randn(4, 300)).item() < 1


# -- the doctor -------------------------------------------------------------------------------------------------------


def inputs(seed=0, count=32):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def watched(network, x=None, steps=3, optimizer=None, labels=None, **options):
    """Records of some watched steps; without an optimizer weights stay as they are."""
    doctor = Doctor(network, every=1, **options)
    for step in range(steps):
        doctor.begin(step)
        y = network((inputs(step) if x is None else x).clone().requires_grad_())
        loss = y.square().mean() if labels is None else nn.functional.cross_entropy(y, labels)
        network.zero_grad()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        doctor.end(loss)
    return doctor.records


def kinds(records, layer="0", **options):
    return {finding.kind for finding in findings(records, **options) if finding.layer == layer}


def conv(weight_quantizer=SteSign, input_quantizer=SteSign, **options):
    torch.manual_seed(0)
    return nn.Sequential(
        QuantConv2d(4, 8, 3, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer, **options)
    )


def test_all_metrics_of_one_layer_are_those_of_its_tensors():
    network = conv()
    layer = network[0]
    x = inputs()
    before = layer.weight.detach().clone()
    (record,) = watched(network, x, 1, torch.optim.SGD(network.parameters(), lr=0.5))
    after = layer.weight.detach()
    found = record.layers["0"]
    assert set(found) == set(METRICS)
    assert found["flip_rate"] == pytest.approx(((before >= 0) != (after >= 0)).float().mean().item())
    assert 0 < found["flip_rate"] < 1
    assert found["saturated"] == (after.abs() >= 1).float().mean().item()
    p = (after >= 0).flatten(1).double().mean(1)
    expected = torch.where((p > 0) & (p < 1), -p * p.log2() - (1 - p) * (1 - p).log2(), 0).mean().item()
    assert found["weight_entropy"] == pytest.approx(expected)
    assert found["no_gradient"] == (layer.weight.grad == 0).float().mean().item()
    share = (x >= 0).transpose(0, 1).flatten(1).double().mean(1)
    entropies = -share * share.log2() - (1 - share) * (1 - share).log2()
    assert found["input_entropy"] == pytest.approx(entropies.mean().item())
    assert record.loss is not None


def test_channels_of_a_linear_layer_are_its_last_axis():
    torch.manual_seed(0)
    network = nn.Sequential(QuantLinear(3, 2, weight_quantizer=SteSign, input_quantizer=SteSign))
    x = torch.randn(16, 5, 3)
    x[..., 1] = 1.0
    (record,) = watched(network, x, 1)
    assert record.layers["0"]["constant_channels"] == pytest.approx(1 / 3)


class Noisy(SteSign):
    """A stochastic quantizer."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))

    def planes(self, x):
        return super().planes(x + 0.1 * torch.randn_like(x))


def test_random_values_have_no_mismatch():
    torch.manual_seed(0)
    assert math.isnan(metrics.gradient_mismatch(Noisy(), torch.randn(1000), torch.randn(1000)))
    (record,) = watched(conv(Noisy, Noisy), steps=1)
    assert not {"input_mismatch", "weight_mismatch"} & set(record.layers["0"])


def test_watching_changes_nothing():
    results = []
    for every in (1, 1000):
        network = nn.Sequential(*conv(Noisy, Noisy), nn.BatchNorm2d(8), *conv(Noisy, Noisy, stride=2)[:0])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        doctor = Doctor(network, every)
        torch.manual_seed(1)
        for step in range(6):
            doctor.begin(step + 1)
            optimizer.zero_grad()
            network(inputs(step)).square().mean().backward()
            optimizer.step()
            doctor.end()
        assert len(doctor.records) == (6 if every == 1 else 0)
        assert not any(module._forward_hooks for module in network.modules())
        results.append(network.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_evaluation_between_begin_and_end_is_not_measured():
    network = conv()
    doctor = Doctor(network, every=1)
    doctor.begin(0)
    with torch.no_grad():
        network.eval()(torch.ones(2, 4, 6, 6))
    network.train()(inputs()).mean().backward()
    doctor.end()
    assert doctor.records[0].layers["0"]["constant_channels"] == 0


@pytest.mark.parametrize(
    ("network", "every", "words"), [(conv(), 0, "every"), (nn.Linear(2, 2), 5, "no quantized layer")]
)
def test_doctor_refuses(network, every, words):
    with pytest.raises(ValueError, match=words):
        Doctor(network, every)


@pytest.mark.parametrize("name", [name for name in configs.NAMES if name != "fp32"])
def test_every_quantizer_can_be_watched(name):
    """All that is measured is a number in its range; a watched training is the one that is not."""
    weight, given = configs.factories()[name]
    states = []
    for every in (1, 1000):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.BatchNorm2d(4), QuantConv2d(4, 6, 3, padding=1, weight_quantizer=weight, input_quantizer=given)
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        doctor = Doctor(network, every)
        for step in range(1, 3):
            doctor.begin(step)
            optimizer.zero_grad()
            network(inputs(step)).square().mean().backward()
            optimizer.step()
            doctor.end()
        states.append(network.state_dict())
        for record in doctor.records:
            found = record.layers["1"]
            assert {"flip_rate", "distance", "constant_filters"} <= set(found)
            for metric, value in found.items():
                top = 10 if "entropy" in metric else 2 if "mismatch" in metric else 1
                assert -1e-6 <= value <= top + 1e-6, (metric, value)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# -- findings ---------------------------------------------------------------------------------------------------------


def test_a_sound_network_has_no_findings():
    network = nn.Sequential(*conv(), nn.BatchNorm2d(8))
    records = watched(network, steps=6, optimizer=torch.optim.SGD(network.parameters(), lr=1e-3))
    assert kinds(records) <= {"frozen weights"}  # six small steps need not flip a weight


def test_finding_constant_channels():
    x = inputs()
    x[:, 0] = 0.3
    x[:, 3] = -5
    found = [f for f in findings(watched(conv(), x)) if f.kind == "constant channels"]
    assert [str(f) for f in found] == ["0: 50 % of channels constant"]
    assert "RSign" in found[0].advice


def test_finding_constant_filters_and_lopsided_weights():
    network = conv()
    network[0].weight.data.abs_()
    records = watched(network)
    assert kinds(records) >= {"constant filters", "lopsided weights"}
    assert "0: 100 % of filters constant" in [str(f) for f in findings(records)]


def test_finding_lopsided_inputs():
    assert "lopsided inputs" in kinds(watched(conv(), inputs() + 2))
    assert "lopsided inputs" not in kinds(watched(conv(), inputs()))


def test_finding_frozen_weights():
    assert "frozen weights" in kinds(watched(conv()))
    network = conv()
    moving = watched(network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0))
    assert "frozen weights" not in kinds(moving)


def test_finding_restless_weights():
    class Restless(torch.optim.SGD):
        def step(self):
            network[0].weight.data.normal_()

    network = conv()
    records = watched(network, optimizer=Restless(network.parameters()))
    assert "restless weights" in kinds(records)
    network = conv()
    calm = watched(network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-5))
    assert "restless weights" not in kinds(calm)


def test_finding_saturated_latents():
    network = conv()
    network[0].weight.data.mul_(100)
    records = watched(network)
    assert "saturated latents" in kinds(records)
    network = conv(XnorWeight)  # has no clip of its own
    network[0].weight.data.mul_(100)
    assert "saturated latents" not in kinds(watched(network))
    assert "saturated latents" in kinds(watched(network, latent_clip=1.0))


def test_finding_no_gradient():
    network = conv()
    network[0].weight.data.add_(torch.sign(network[0].weight.data) * 2)
    assert "no gradient" in kinds(watched(network))


class Opposite(Quantizer):
    """A sign whose surrogate passes gradients far from the threshold alone."""

    elementwise = True

    def forward(self, x):
        y = SteSign(clip=None)(x)
        return torch.where(x.abs() < 2, y.detach(), y)

    def planes(self, x):
        return SteSign().planes(x)


def test_finding_mismatches():
    x = 3 * inputs()
    found = kinds(watched(conv(input_quantizer=Opposite), x))
    assert "input gradient mismatch" in found
    assert "weight gradient mismatch" not in found
    network = conv(weight_quantizer=Opposite)
    network[0].weight.data.mul_(10)
    assert "weight gradient mismatch" in kinds(watched(network))


def test_finding_far_from_latents():
    """A ternary threshold above nearly every weight leaves nothing of most filters."""
    network = conv(partial(TernaryWeight, factor=0.99))
    network[0].weight.data[1:] *= 1e-3
    assert "far from latents" in kinds(watched(network))


def test_bop_has_no_latents_to_find_fault_with():
    network = conv()
    optimizer = Bop([network[0].weight], gamma=0.1, threshold=0.0)
    records = watched(network, optimizer=optimizer)
    assert not {"saturated", "weight_mismatch"} & set(records[-1].layers["0"])
    assert records[-1].layers["0"]["distance"] == pytest.approx(0, abs=1e-9)


def test_findings_of_the_loss():
    def of(*losses, classes=None):
        return [f.kind for f in findings([Record(i, loss) for i, loss in enumerate(losses)], classes)]

    assert of(2.3, math.nan, 1.0, 1.0) == ["not finite"]
    assert of(2.3, math.inf, math.nan) == ["not finite"]
    assert of(1.0, 1.5, 2.0) == ["loss does not fall"]
    assert of(5.0, 2.3, 2.29, classes=10) == ["no better than guessing"]
    assert of(5.0, 2.3, 1.9, classes=10) == []
    assert of(5.0, 4.0) == of() == of(None, None, None) == []


def test_findings_name_a_network_that_guesses():
    """All latents beyond the window, no input passes: nothing is learned."""
    torch.manual_seed(0)
    network = nn.Sequential(*conv(), nn.Flatten(), nn.Linear(8 * 16, 3))
    network[2].requires_grad_(False).weight.zero_()
    records = watched(network, steps=4, labels=torch.arange(32) % 3)
    assert findings(records, classes=3)[0].kind == "no better than guessing"


def test_every_kind_is_tested():
    text = Path(__file__).read_text()
    assert all(f'"{kind}"' in text for kind in KINDS)


# -- report and callback ----------------------------------------------------------------------------------------------


def test_a_report_is_strict_json_and_comes_back():
    records = [*watched(conv(), inputs()), Record(9, math.nan, {})]
    content = json.loads(json.dumps(report(records, findings(records), 1), allow_nan=False))
    again = records_of(content)
    assert [r.step for r in again] == [0, 1, 2, 9]
    assert math.isnan(again[-1].loss)
    for old, new in zip(records, again, strict=True):
        assert set(old.layers) <= set(new.layers)
        for layer, values in old.layers.items():
            assert new.layers[layer] == pytest.approx(values, rel=1e-5, abs=1e-12)
    assert [f["kind"] for f in content["findings"]] == ["not finite"]
    with pytest.raises(ValueError, match="no report"):
        records_of({"steps": [1]})


def run(folder, epochs, every=2):
    torch.manual_seed(0)
    network = DigitsCNN(width=4, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    classifier = partial(Classifier, optimizer=partial(torch.optim.Adam, lr=0.01), center_latents=True, latent_clip=1.0)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    callbacks = [Checkup(folder, every, latent_clip=1.0, classes=10)] if every else []
    train(classifier, network, digits(), folder, epochs=epochs, batch_size=300, seed=0, trainer=quiet,
          callbacks=callbacks)  # fmt: skip
    return network


def test_a_run_that_goes_on_keeps_its_records(tmp_path):
    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 2)
    run(tmp_path / "parts", 3)
    first, second = (json.loads((tmp_path / name / "doctor.json").read_text()) for name in ("whole", "parts"))
    assert first["steps"] == [0, 2, 4, 6, 8, 10]
    assert first == second
    assert set(first["layers"]) == {"conv2", "conv3", "linear4"}
    plain = run(tmp_path / "plain", 3, every=None)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not (tmp_path / "plain" / "doctor.json").exists()


class Signs(Callback):
    """Keeps the signs of every quantized layer's weights as they were before training and after each optimizer step."""

    def on_train_start(self, trainer, pl_module):
        self.layers = {
            name: m for name, m in pl_module.network.named_modules() if isinstance(m, QuantConv2d | QuantLinear)
        }
        self.kept = [self.now()]
        self.step = 0

    def now(self):
        return {name: layer.weight.detach() < 0 for name, layer in self.layers.items()}

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.kept.append(self.now())


def test_a_step_over_several_batches_is_watched_once(tmp_path):
    """The flip rate of each step is that between its weights before the first batch and after the last one."""
    classifier = partial(Classifier, optimizer=partial(torch.optim.Adam, lr=0.05))
    network = DigitsCNN(width=2, weight_quantizer=XnorWeight, input_quantizer=SteSign)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "accumulate_grad_batches": 2}
    signs = Signs()
    train(classifier, network, digits(), tmp_path, epochs=2, batch_size=300, seed=0, trainer=options,
          callbacks=[Checkup(tmp_path, 1), signs])  # fmt: skip
    content = json.loads((tmp_path / "doctor.json").read_text())
    assert content["steps"] == [0, 1, 2, 3]
    assert set(content["layers"]) == {"conv2", "conv3", "linear4"}
    for name, series in content["layers"].items():
        pairs = zip(signs.kept, signs.kept[1:], strict=False)
        expected = [(before[name] != after[name]).float().mean().item() for before, after in pairs]
        assert series["flip_rate"] == pytest.approx(expected, abs=1e-6)
        assert max(expected) > 0


def test_an_fp32_network_is_not_watched(tmp_path):
    classifier = partial(Classifier, optimizer=torch.optim.Adam)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    train(classifier, DigitsCNN(width=2), digits(), tmp_path, epochs=1, batch_size=600, seed=0, trainer=quiet,
          callbacks=[Checkup(tmp_path, 1)])  # fmt: skip
    assert not (tmp_path / "doctor.json").exists()
