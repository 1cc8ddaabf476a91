"""Every recipe of configs/experiment: it trains two steps on made images, and converts; what it says was published."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import cli
from experiments.config_values import ConfigError
from experiments.published_numbers import check_published, per_cent, published_for
from paper_figures.ledger_file import read_ledger, run_rows

FILES = sorted((cli.CONFIGS / "experiment").glob("*.yaml"))
# Language models and sounds have their own tests of the commands.
OF_IMAGES = ("mnist", "cifar10", "svhn", "imagenet", "digits", "demo")
RECIPES = [file.stem for file in FILES if file.stem.endswith(OF_IMAGES)]
# The whole of AlexNet's linear layers is of one size of image.
SIZES = {"AlexNet": 224, "LeNet5": 28, "MLP": 28, "BiRealNet18": 64, "ResNet18": 64, "MeliusNet22": 64, "QuickNet": 64,
         "BinaryDenseNet28": 64, "ReActNetA": 64, "RealToBinaryNet": 64, "ResNetE18": 64}  # fmt: skip


def composed(name, *overrides):
    with initialize_config_dir(str(cli.CONFIGS), **cli.VERSION_BASE):
        return compose("train", [f"experiment={name}", *overrides])


@pytest.fixture
def images(tmp_path):
    """images(size, channels, classes) -> the .npz file of few images of noise, two of each class in each split."""

    def make(size, channels, classes):
        draws = np.random.default_rng(0)
        labels = np.repeat(np.arange(classes), 2)
        arrays = {}
        for split in ("train", "validation", "test"):
            shape = (len(labels), channels, size, size)
            arrays[f"x_{split}"] = draws.integers(0, 256, shape, np.uint8)
            arrays[f"y_{split}"] = labels
        np.savez(tmp_path / "noise.npz", **arrays)
        return tmp_path / "noise.npz"

    return make


def _model(config):
    return config.model._target_.rpartition(".")[2]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_converts(name, images, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = composed(name)
    model = _model(config)
    large = model in ("BiRealNet18", "ResNet18", "ResNetE18") and "imagenet" not in name
    channels = 1 if model in ("LeNet5", "MLP", "DigitsCNN") else 3
    size = 32 if large or model not in SIZES else SIZES[model]
    file = images(8 if model == "DigitsCNN" else size, channels, 3)
    # The narrowest network; LeNet-5 has no width. What the recipe has of a data set's own options goes with it.
    narrow = {"LeNet5": [], "DigitsCNN": ["model.width=4"]}.get(model, ["+model.width=0.0625"])
    if "width" in config.model and model != "DigitsCNN":
        narrow = ["model.width=0.0625"]
    gone = [f"~data.{key}" for key in composed(name, "data=arrays").data if key not in _ARRAYS]
    run = [
        f"experiment={name}",
        "data=arrays",
        f"data.file={file}",
        "data.name=noise",
        *gone,
        *narrow,
        "batch_size=3",
        "epochs=2",
        "scheduler.warmup=0" if "warmup" in config.scheduler else "seed=0",
        "~trainer.limit_train_batches" if "limit_train_batches" in config.trainer else "seed=0",
        "+trainer.limit_train_batches=1",
        "trainer.enable_progress_bar=false",
    ]
    if config.loss.get("share") == 1.0:  # it learns from a teacher alone
        teacher = command("experiments.train", *run, "quantizer=fp32", "loss=cross_entropy", "stages=null", "run_dir=t")
        assert teacher.status == 0, teacher.err
        run.append("teacher.run=t")
    done = command("experiments.train", *run, "run_dir=run")
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [stage["name"] for stage in result.get("stages", [])] == list(config.stages or [])
    assert result["steps"] == 2
    assert "published" not in result  # noise is not what was published
    converted = command("experiments.convert", "run=run", "parity=4")
    assert converted.status == 0, converted.err + converted.out


_ARRAYS = {"_target_", "file", "layout", "validation", "test", "name", "mean", "std"}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_publishes_is_of_its_own_setting(name):
    config = composed(name)
    check_published(config)
    if config.published is None:
        ours = ("demo", "methods_cifar10", "methods_mnist", "lsq2_resnet20_cifar10", "pact2_resnet20_cifar10")
        assert name in ours
        return
    data = config.data.name if "name" in config.data else config.published.data
    assert name.endswith(data)
    assert published_for(config, data) == {
        "metric": "test_accuracy",
        "value": config.published.value,
        "source": config.published.source,
    }
    assert 0.27 < config.published.value < 1
    config.quantizer.name = "another"
    assert published_for(config, data) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 99.2}, r"share in \[0, 1\], got 99.2"),
        ({"value": None}, "lacks value"),
        ({"metric": "speed"}, r"must be one of test_accuracy, .*, got 'speed'"),
        ({"url": "x"}, "has no option url"),
    ],
)
def test_a_wrong_entry_is_refused(change, message):
    config = composed("xnor_lenet5_mnist")
    OmegaConf.set_struct(config, False)
    config.published.update(change)
    with pytest.raises(ConfigError, match=message):
        check_published(config)


def test_a_number_of_others_is_no_part_of_the_experiment_and_stands_in_reports(command, tmp_path, monkeypatch):
    from experiments.identity import experiment_id

    entry = "{metric: test_accuracy, value: 0.8125, source: a paper, quantizer: xnor, model: DigitsCNN, data: digits}"
    tiny = ("model.width=4", "epochs=1", "trainer.enable_progress_bar=false", "batch_size=400")
    monkeypatch.chdir(tmp_path)
    done = command("experiments.train", "-m", "quantizer=xnor,fp32", *tiny, f"published={entry.replace(': ', ':')}")
    assert done.status == 0, done.err
    assert "(published 81.25 %, a paper)" in done.out
    collected = command("experiments.collect", "output=table.json")
    assert collected.status == 0, collected.err
    assert "published" in collected.out
    rows = run_rows(read_ledger(tmp_path / "table.json"))
    assert {row["quantizer"]: (row["published"], row["published_source"]) for row in rows} == {
        "xnor": (0.8125, "a paper"),
        "fp32": (None, None),
    }
    config = composed("demo")
    assert experiment_id(config) == experiment_id(composed("demo", f"published={entry.replace(': ', ':')}"))


def test_shares_are_told_with_their_own_digits():
    assert [per_cent(value) for value in (0.9923, 0.865, 0.9, None)] == ["99.23", "86.5", "90.0", ""]
