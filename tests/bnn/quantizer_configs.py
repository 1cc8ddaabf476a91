"""Every quantizer that a config names, found by walking configs/quantizer: what the contract tests run over."""

from functools import cache

from omegaconf import OmegaConf

from bnn.layers.base import make_quantizer
from bnn.quantizers import (
    BinaryConnect,
    FullPrecision,
    NoiseAdaptedSign,
    ProgressiveSign,
    RelaxedWeight,
    StochasticSign,
)
from experiments import cli
from experiments.hydra_versions import instantiate

NAMES = sorted(file.stem for file in (cli.CONFIGS / "quantizer").glob("*.yaml"))


@cache
def config(name):
    """What Hydra composes for `quantizer=NAME` (a test compares them), without its quarter of a second a config."""
    own = OmegaConf.load(cli.CONFIGS / "quantizer" / f"{name}.yaml")
    return OmegaConf.merge(*(config(base) for base in own.pop("defaults", [])), own)


@cache
def factories():
    """{config name: (weight factory, input factory)}."""
    return {
        name: tuple(instantiate(config(name)[role], _convert_="object") for role in ("weight", "input"))
        for name in NAMES
    }


def quantizers():
    """[(id, role, factory)] of all configs, each quantizer with its arguments once, full precision left out."""
    found = {}
    for pair in factories().values():
        for role, factory in zip(("weight", "input"), pair, strict=True):
            if factory.func is not FullPrecision:
                arguments = ",".join(f"{k}={v}" for k, v in factory.keywords.items())
                found[f"{role}-{factory.func.__name__}({arguments})"] = (role, factory)
    return [(name, role, factory) for name, (role, factory) in sorted(found.items())]


def make(role, factory, x):
    """A quantizer for a tensor such as x: a weight, or an input with channels on axis 1."""
    if role == "weight":
        return make_quantizer(factory, "weight_quantizer", channels=x.shape[0], channel_axis=0, fan_in=x[0].numel())
    return make_quantizer(factory, "input_quantizer", channels=x.shape[1], channel_axis=1)


def few_valued_in_training(quantizer):
    """Whether the values of a training forward are those of the planes: neither drawn nor still on their way."""
    drawn = isinstance(quantizer, StochasticSign) or (isinstance(quantizer, BinaryConnect) and quantizer.stochastic)
    return not drawn and not isinstance(quantizer, ProgressiveSign | NoiseAdaptedSign | RelaxedWeight)
