"""Every config file composes and can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bnn.training import Scheduling
from experiments import cli

GROUPS = ("data", "model", "quantizer", "optimizer", "scheduler", "experiment")
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((cli.CONFIGS / group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def _configs():
    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        yield


def composed(*overrides):
    config = compose("train", list(overrides))
    OmegaConf.resolve(config)
    return config


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_builds(group, name):
    config = composed(f"{group}={name}" if group != "experiment" else f"experiment={name}")
    network = instantiate(config.model, _convert_="object")
    classifier = instantiate(config.classifier, _convert_="object")(network)
    configured = classifier.configure_optimizers()
    rate = configured["optimizer"].param_groups[0]["lr"]
    assert configured["lr_scheduler"].base_lrs[0] == config.optimizer.lr
    assert 0 < rate <= config.optimizer.lr
    Scheduling(instantiate(config.schedules, _convert_="object") or [])


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "quantizer"])
def test_quantizers_say_what_they_are(name):
    quantizer = composed(f"quantizer={name}").quantizer
    assert quantizer.name == name  # runs are filed under this name
    assert quantizer.label


@pytest.mark.parametrize(
    "config", ["convert", "benchmark", "collect", "compare_methods", "training_step", "activation_memory"]
)
def test_commands_compose(config):
    assert compose(config) is not None


@pytest.mark.parametrize("suite", ["network", "kernels"])
def test_suites_compose(suite):
    config = compose("benchmark", [f"suite={suite}"])
    assert all(len(layer) == 4 for layer in config.layers)
    assert bool(config.batch_sizes) == (suite == "network")


def test_the_networks_suite_names_models_and_quantizers():
    config = compose("benchmark", ["suite=networks"])
    names = {(group, name) for group, name in CHOICES}
    for entry in config.networks:
        model, _, quantizer = entry.partition("/")
        assert {("model", model), ("quantizer", quantizer or "xnor")} <= names


def test_the_two_mnist_runs_differ_in_nothing_but_precision_and_optimizer():
    xnor, twin = (composed(f"experiment={name}_lenet5_mnist") for name in ("xnor", "fp32"))
    same = ("data", "name", "epochs", "batch_size", "seed", "scheduler", "trainer")
    assert all(xnor[key] == twin[key] for key in same)
    assert xnor.model._target_ == twin.model._target_


def test_every_experiment_and_quantizer_is_explained():
    for group in ("quantizer", "experiment"):
        for file in Path(cli.CONFIGS / group).glob("*.yaml"):
            lines = file.read_text().splitlines()
            comment = lines[1] if lines[0].startswith("# @package") else lines[0]
            assert comment.startswith("# "), f"{file.name} begins with no comment"
