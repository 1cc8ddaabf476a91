"""Bits of single layers: which quantizers a config's widths make, and that runs begin with those of their own seed."""

import shutil
from functools import partial

import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir

from bnn.layers import QuantConv2d
from bnn.models import DigitsCNN
from bnn.quantizers import FullPrecision, LsqActivation, LsqWeight
from bnn.training import RunError
from experiments import cli
from experiments.config_values import ConfigError
from experiments.hydra_versions import instantiate
from experiments.identity import experiment_id
from experiments.layer_widths import set_widths
from experiments.runs import find_run, load_config, load_run


def composed(*options):
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        return compose("train", list(options))


def bits_of(network):
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "weight_quantizer")}
    return {
        name: tuple(int(str(q).partition("bits=")[2][0]) for q in (layer.weight_quantizer, layer.input_quantizer))
        for name, layer in layers.items()
    }


def made(*options):
    config = composed("quantizer=lsq8", "model.width=4", *options)
    network = instantiate(config.model, _convert_="object")
    set_widths(network, config)
    return network


def test_layers_have_the_bits_that_they_are_given():
    network = made("quantizer.widths={conv2:1,linear4:2/4}")
    assert bits_of(network) == {"conv2": (1, 1), "conv3": (8, 8), "linear4": (2, 4)}
    network(torch.rand(4, 1, 8, 8))  # in training: steps begin
    levels = {
        name: len((layer.quantized_weight() / layer.weight_quantizer.step).round().unique())
        for name, layer in network.eval().named_modules()
        if isinstance(layer, QuantConv2d) and name in ("conv2", "conv3")
    }
    assert levels["conv2"] == 2 < 4 < levels["conv3"]
    nested = made("+quantizer.widths.conv2=3")  # as stages write dotted names
    assert bits_of(nested)["conv2"] == (3, 3)


def test_new_quantizers_are_those_of_a_layer_made_with_them():
    weight, inputs = partial(LsqWeight, bits=3, per_channel=True), partial(LsqActivation, bits=3)
    layer = QuantConv2d(4, 6, 3).eval()
    other = QuantConv2d(4, 6, 3, weight_quantizer=weight, input_quantizer=inputs)
    other.load_state_dict({**other.state_dict(), **layer.state_dict()})
    layer.set_quantizers(weight, inputs)
    assert not any(module.training for module in layer.modules())
    assert repr(layer) == repr(other) and layer.weight_quantizer.step.shape == (6,)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(layer.train()(x), other(x))
    scaled = QuantConv2d(4, 6, 3, input_quantizer=inputs, input_scale=True)
    with pytest.raises(ValueError, match="needs an input_quantizer"):
        scaled.set_quantizers(weight, FullPrecision)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["quantizer.widths={conv22:4}"], "DigitsCNN has no quantized layer 'conv22'. Did you mean conv2?"),
        (["quantizer.widths={conv1:4}"], "no quantized layer 'conv1'"),
        (["quantizer.widths={conv2:9}"], "bits from 1 to 8, such as 4 or 2/8, got 9"),
        (["quantizer.widths={conv2:2/}"], "got '2/'"),
        (["quantizer.widths=4"], "must be {layer: bits}"),
        (["quantizer=twn", "quantizer.widths={conv2:4}"], "TernaryWeight has none: quantizer=lsq4 has"),
    ],
)
def test_mistakes_are_told(options, words):
    with pytest.raises(ConfigError) as told:
        made(*options)
    assert words in str(told.value)


def test_without_widths_an_experiment_is_that_of_before():
    config = composed("quantizer=lsq2")
    older = composed("quantizer=lsq2")
    del older.quantizer.widths
    assert experiment_id(config) == experiment_id(older)
    assert experiment_id(config) != experiment_id(composed("quantizer=lsq2", "quantizer.widths={conv2:2}"))


def test_a_run_begins_with_the_one_of_its_own_seed(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (first,) = (tmp_path / "runs").glob("default/fp32/*/seed0")
    before = first.parent.relative_to(tmp_path)
    arguments = ("quantizer=lsq8", "quantizer.widths={conv2:1,conv3:2/4}", f"start.run={before}", "optimizer.lr=1e-12")
    done = command("experiments.train", *TINY, *arguments, "epochs=1")
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "runs").glob("default/lsq8/*/seed0")
    network = load_run(folder)[1]
    assert bits_of(network) == {"conv2": (1, 1), "conv3": (2, 4), "linear4": (8, 8)}
    theirs = load_run(first)[1]
    assert isinstance(network, DigitsCNN) and torch.allclose(network.conv2.weight, theirs.conv2.weight, atol=1e-6)
    assert load_config(folder).quantizer.widths == {"conv2": 1, "conv3": "2/4"}
    missing = command("experiments.train", *TINY, *arguments, "seed=1")
    assert (missing.status, f"{before} has runs of the seeds 0 and none of seed 1" in missing.err) == (2, True)
    shutil.copytree(first, first.with_name("seed11"))
    assert find_run(before, 11) == before / "seed11" and find_run(before / "seed0", 11) == before / "seed0"
    with pytest.raises(RunError, match="holds 2 runs"):
        find_run(before)
