"""Every model of images that a config names, found by walking configs/model: what the tests of models run over."""

import functools
import inspect

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from experiments import cli
from experiments.hydra_versions import instantiate

# Networks of tokens and of sounds have tests of their own.
OF_OTHERS = {"bitlinear_decoder", "m5"}
NAMES = sorted({file.stem for file in (cli.CONFIGS / "model").glob("*.yaml")} - OF_OTHERS)
# Of networks made of the same parts the larger are slow tests.
SLOW = {"binary_densenet28", "darknet_extraction", "meliusnet22", "quicknet", "resnet_e18"}
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
# The method of a model: XNOR-Net's, but for those that the benchmark of networks pairs with another.
_PAIRS = [entry.split("/") for entry in OmegaConf.load(cli.CONFIGS / "suite" / "networks.yaml").networks]
METHODS = dict.fromkeys(NAMES, "xnor") | dict(pair for pair in _PAIRS if len(pair) == 2)


@functools.cache
def model_config(name, quantizer):
    """The options of a config's model, resolved."""
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        config = compose("train", [f"model={name}", f"quantizer={quantizer}"])
    return OmegaConf.to_container(config.model, resolve=True)


def build(name, quantizer, narrow=None, **more):
    """A config's model; narrow: the share of its channels, where the model has the option `width`; more: options."""
    config = OmegaConf.create(model_config(name, quantizer))
    width = inspect.signature(get_class(config._target_)).parameters.get("width")
    options = {}
    if narrow is not None and width is not None:  # a factor, or the channels themselves
        options["width"] = narrow if isinstance(width.default, float) else int(narrow * width.default)
    return instantiate(config, **options, **more, _convert_="object")


def small_shape(model):
    """The input of a quick test: 64x64 for a model of larger images that takes them, else the model's own."""
    channels, height, width = model.input_shape
    if max(height, width) <= 64:
        return model.input_shape
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, 64, 64))
    except RuntimeError:  # its linear layers are of one size
        return model.input_shape
    return channels, 64, 64
