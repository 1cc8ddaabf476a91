"""Every config file composes and can be built."""

import ast
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bnn.pruning import Pruning
from bnn.training import DampOscillations, FreezeOscillations, Scheduling
from experiments import cli
from experiments.benchmark_kernels import KINDS
from experiments.hydra_versions import instantiate
from experiments.widths import Width

GROUPS = ("data", "model", "quantizer", "optimizer", "scheduler", "loss", "experiment")
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((cli.CONFIGS / group).glob("*.yaml"))]

# What a choice cannot do without.
NEEDED = {
    "attention": ["loss.maps=[conv2]", "loss.attention=1"],
    "datasets": ["data.train._target_=torch.utils.data.TensorDataset"],
}


@pytest.fixture(autouse=True)
def _configs():
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        yield


def composed(*overrides):
    config = compose("train", list(overrides))
    OmegaConf.resolve(config)
    return config


@pytest.mark.quick_cases(30)
@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_builds(group, name):
    config = composed(f"{group}={name}", *NEEDED.get(name, ()))
    network = instantiate(config.model, _convert_="object")
    classifier = instantiate(config.classifier, _convert_="object")(network)
    configured = classifier.configure_optimizers()
    rate = configured["optimizer"].param_groups[0]["lr"]
    assert configured["lr_scheduler"].base_lrs[0] == config.optimizer.lr
    assert 0 < rate <= config.optimizer.lr
    assert callable(instantiate(config.loss))
    Scheduling(instantiate(config.schedules, _convert_="object") or [])


@pytest.mark.parametrize("name", [file.stem for file in sorted((cli.CONFIGS / "augment").glob("*.yaml"))])
def test_every_augmentation_changes_images(name):
    images = torch.rand(8, 1, 2000) if name == "shift" else torch.rand(8, 3, 32, 32)
    changed = instantiate(composed(f"augment={name}").augment, _convert_="object")(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("name", [file.stem for file in sorted((cli.CONFIGS / "oscillation").glob("*.yaml"))])
def test_every_cure_of_oscillations_is_a_callback_of_the_trainer(name):
    (callback,) = instantiate(composed(f"+oscillation={name}").trainer, _convert_="object")["callbacks"]
    assert isinstance(callback, DampOscillations | FreezeOscillations)


@pytest.mark.parametrize("name", [file.stem for file in sorted((cli.CONFIGS / "pruning").glob("*.yaml"))])
def test_every_pruning_can_begin(name):
    config = composed(f"pruning={name}", "quantizer=lsq4")
    pruning = instantiate(config.pruning, _convert_="object")
    assert isinstance(pruning, Pruning)
    assert (pruning.amount, pruning.epoch, pruning.until) == (config.pruning.amount, 1, 1)
    pruning.begin(instantiate(config.model, _convert_="object"))
    assert "pruning" not in composed()  # runs of before are the same experiments


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "quantizer"])
def test_quantizers_say_what_they_are(name):
    quantizer = OmegaConf.load(cli.CONFIGS / "quantizer" / f"{name}.yaml")
    assert quantizer.name == name  # runs are filed under this name
    bits = r"(\d+( bases)?|t)"  # of weights and of activations
    assert re.fullmatch(rf"{bits}/{bits}(\+K)?( .+)?", quantizer.label)


# Command: the modules that read its config. `_read` finds what they ask of it.
READERS = {
    "activation_memory": ("activation_memory", "steps"),
    "benchmark": (
        *("benchmark", "benchmark_costs", "benchmark_decoder", "benchmark_kernels", "benchmark_networks"),
        "benchmark_widths",
    ),
    "bits_by_layer": ("bits_by_layer",),
    "collect": ("collect",),
    "compare_methods": ("compare_methods",),
    "convert": ("convert",),
    "data": ("data",),
    "from_onnx": ("from_onnx",),
    "harness_speed": ("harness_speed", "steps"),
    "ladder": ("ladder", "ladder_subjects"),
    "ledger": ("ledger",),
    "mixed_precision": ("mixed_precision", "steps"),
    "post_training": ("post_training",),
    "published": ("published",),
    "report": ("report", "report_data"),
    "sensitivity": ("sensitivity",),
    "sweep": ("sweep", "sweep_plan"),
    "timm": ("timm",),
    "training_step": ("training_step", "steps"),
}
# Built whole by its name, or read by what other commands read it with too.
BUILT = {"data": {"data"}, "ladder": {"quantizer", "name", "options", "seeds"}}
# Read from the config of the run, which is another.
OF_A_RUN = {
    "ladder": {"data", "model"},
    "convert": {"data", "name", "seed", "quantizer", "pruning"},
    "report": {"model"},
}


def _read(module):
    """The keys that a module of `experiments` reads from a config."""
    tree = ast.parse((Path(cli.__file__).parent / f"{module}.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {node.attr for node in nodes if node.value.id in ("config", "node")}


@pytest.mark.parametrize("command", READERS)
def test_a_command_reads_every_option_that_it_has_and_no_other(command):
    config = compose(command)
    assert not OmegaConf.missing_keys(config) - {"file", "run", "sources"}
    OmegaConf.to_container(config, resolve=True)  # every reference between options is there
    read = set().union(*map(_read, READERS[command]))
    assert read - OF_A_RUN.get(command, set()) - set(dir(config)) <= set(config)
    assert set(config) <= read | BUILT.get(command, set())


def test_every_config_of_a_command_is_tested():
    fragments = {"train", "hydra_quiet", "hydra_run"}  # train: test_every_choice_builds
    assert {file.stem for file in cli.CONFIGS.glob("*.yaml")} - fragments == set(READERS)


@pytest.mark.parametrize("suite", ["network", "kernels"])
def test_suites_compose(suite):
    config = compose("benchmark", [f"suite={suite}"])
    assert bool(config.batch_sizes) == (suite == "network")
    assert all(len(layer) == 4 and min(layer) > 0 for layer in config.layers)
    assert len(config.layers) >= 5
    assert bool(config.variants) == (suite == "kernels")
    for spec in config.variants:
        assert {"in", "out", "size", "kernel"} <= set(spec)
        assert set(spec) <= {"in", "out", "size", "kernel", "stride", "batch", "weights", "inputs"}
        assert {spec.get("weights", "signs"), spec.get("inputs", "signs")} <= set(KINDS)


def test_the_suite_of_costs_composes():
    config = compose("benchmark", ["suite=costs"])
    assert config.costs
    assert not config.widths


@pytest.mark.parametrize("suite", ["widths", "network_widths"])
def test_suites_of_widths_compose(suite):
    config = compose("benchmark", [f"suite={suite}"])
    widths = [Width.parse(width) for width in config.widths]
    # Those of the figure, and weights alone.
    assert {"1/1", "t/1", "1/2", "2/2", "t/2", "4/4", "4/8", "8/8", "1/8", "t/8"} <= set(config.widths)
    assert any(width.inputs == "32" and width.weights != "32" for width in widths)
    assert bool(config.networks) == (suite == "network_widths") != bool(config.layers)
    assert {("model", name.removesuffix("/int8")) for name in config.networks} <= set(CHOICES)


def test_the_networks_suite_names_models_and_quantizers():
    config = compose("benchmark", ["suite=networks"])
    names = {(group, name) for group, name in CHOICES}
    for entry in config.networks:
        model, *more = entry.split("/")
        assert {("model", model), ("quantizer", more[0] if more else "xnor")} <= names
        assert more[1:] in ([], ["int8"])


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
