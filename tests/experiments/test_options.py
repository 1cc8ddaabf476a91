"""Options of experiments.train: each works or is refused by name, with status 2 and one message."""

import csv
import importlib.util
import json
import sys

import pytest
from conftest import TINY

from experiments import benchmark_costs

EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: %s, mode: max, patience: 0, min_delta: 1}"


@pytest.fixture
def train(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        flags = arguments[: next((n for n, text in enumerate(arguments) if "=" in text), 0)]
        return command("experiments.train", *flags, *TINY, "trainer.accelerator=cpu", *arguments[len(flags) :])

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+trainer.max_epochs=5"], ["trainer.max_epochs cannot be given: use epochs"]),
        (["trainer.max_epochs=5"], ["no option 'trainer.max_epochs'", "+trainer.max_epochs=5"]),
        (["+trainer.max_epoch=5"], ["no argument 'max_epoch'", "Did you mean max_epochs?"]),
        (["trainer.devices=2", "trainer.strategy=ddp_spawn"], ["trainer.strategy=ddp_spawn", "trainer.strategy=ddp"]),
        (["trainer.devices=2", "+trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true needs graphics cards"]),
        (["trainer.devices=2", "batch_size=1"], ["batch_size=1", "there are 2", "fewer devices"]),
        (["trainer.num_nodes=2"], ["trainer.num_nodes above 1 is for torchrun"]),
        (["+trainer.overfit_batches=1"], ["limit_train_batches"]),
        (["+trainer.enable_checkpointing=false"], ["enable_checkpointing"]),
        (["+trainer.callbacks=5"], ["trainer.callbacks"]),
        (["+trainer.logger=text"], ["trainer.logger"]),
        ([f"+trainer.callbacks=[{EARLY % 'val_loss'}]"], ["val_loss", "validation_accuracy"]),
        (["+trainer.limit_val_batches=0"], ["limit_val_batches=0", "check_val_every_n_epoch"]),
        (["+trainer.limit_train_batches=0"], ["limit_train_batches=0"]),
        (["+trainer.max_steps=0"], ["max_steps=0"]),
        (["+trainer.max_time=abc"], ["max_time", "abc"]),
        (["trainer.precision=7"], ["trainer: Precision 7"]),
        (["optimizer.lr=nan"], ["optimizer.lr is nan"]),
        (["ema=1.5"], ["ema must be a decay between 0 and 1"]),
        (["ema=often"], ["ema must be a decay between 0 and 1"]),
        (["optimizer.lr=-1"], ["Invalid learning rate: -1"]),
        (["optimizer.lr=abc"], ["optimizer.lr must be a number, got 'abc'"]),
        (["optimizer.lr=true"], ["optimizer.lr must be a number, got True"]),
        (["optimizer.lr=1e30"], ["the loss is not finite at epoch 0, step 1", "conv2", "optimizer.lr"]),
        (["lock=never"], ["lock is wait or refuse, got 'never'"]),
        (["seed=1.5"], ["seed must be a whole number, got 1.5"]),
        (["seed=null"], ["seed must be a whole number"]),
        (["seed=-1"], ["seed must be at least 0"]),
        (["seed=99999999999"], ["seed must be at most 4294967295"]),
        (["epochs=true"], ["epochs must be a whole number, got True"]),
        (["batch_size=many"], ["batch_size must be a whole number, got 'many'"]),
        (["quantizer=dorefa2", "quantizer.weight.bitz=2"], ["Did you mean quantizer.weight.bits?"]),
        (["quantizer=dorefa2", "+quantizer.weight.foo=1"], ["DoReFaWeight has no argument 'foo'", "bits"]),
        (["quantizer.weight._target_=bnn.quantizers.XnorWeigth"], ["no 'XnorWeigth'", "Did you mean XnorWeight?"]),
        (["quantizer.weight._target_=nomodule.X"], ["quantizer.weight", "no module 'nomodule'"]),
        (["quantizer.weight._partial_=false"], ["quantizer.weight", "_partial_: true"]),
        (["+augment=crop"], ["without the plus, augment=crop"]),
        (["loss.label_smoothing=2"], ["no loss of logits (N, classes) and labels (N,)", "label_smoothing"]),
        (["hydra.run.dir=x"], ["hydra.run.dir cannot be given", "run_dir="]),
        (["-m", "hydra.sweep.dir=x"], ["hydra.sweep.dir cannot be given", "run_dir="]),
        (["hydra.job.chdir=true"], ["hydra.job.chdir"]),
    ],
)
def test_what_cannot_be_is_refused_with_one_message(arguments, words, train, tmp_path):
    failed = train(*arguments, "run_dir=r")
    assert failed.status == 2
    for word in words:
        assert word in failed.err
    assert "Traceback" not in failed.err
    assert failed.err.count("error:") == 1
    assert not list(tmp_path.rglob("result.json"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("benchmark", "seconds=fast", "seconds must be a number of at least 0, got 'fast'"),
        ("benchmark", "least_calls=-1", "least_calls must be at least 0, got -1"),
        ("benchmark", "tokens=0", "tokens must be at least 1, got 0"),
        ("convert", "parity=many", "parity must be a whole number, got 'many'"),
        ("convert", "tolerance=nan", "tolerance must be a number of at least 0, got nan"),
        ("mixed_precision", "threads=1.5", "threads must be a whole number, got 1.5"),
        ("post_training", "batches=0", "batches must be at least 1, got 0"),
        ("sensitivity", "batch_size=true", "batch_size must be a whole number, got True"),
        ("timm", "inputs=-5", "inputs must be at least 1, got -5"),
        ("training_step", "seconds=-1", "seconds must be a number of at least 0, got -1"),
    ],
)
def test_numbers_of_every_command_are_checked(name, option, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = command(f"experiments.{name}", option, *(["run=nowhere"] if name in ("convert", "sensitivity") else []))
    assert (failed.status, failed.err.strip()) == (2, f"error: {words}")


@pytest.mark.parametrize(
    ("name", "words"), [("file/x.json", "Not a directory"), ("folder", "it is a folder"), ("none/x.json", "")]
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(name, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    begun = []
    monkeypatch.setattr(benchmark_costs, "task", begun.append)
    done = command("experiments.benchmark", "suite=costs", f"output={name}")
    assert done.status == (2 if words else 0)
    assert len(begun) == (0 if words else 1)
    assert not (tmp_path / "none").exists()
    if words:
        assert f"error: output={name} cannot be written: {words}" in done.err


@pytest.mark.parametrize("option", ["+trainer.max_epochs=5", "trainer.num_nodes=2", "trainer.precision=7"])
def test_a_refused_option_takes_no_folder(option, train, tmp_path):
    assert train(option, "run_dir=taken").status == 2
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_is_not_installed_says_what_installs_it(name, train, tmp_path):
    if importlib.util.find_spec(name) is not None:
        pytest.skip("it is installed")
    failed = train(f"logger={name}", "run_dir=r")
    assert failed.status == 2
    assert "trainer.logger: lightning.pytorch.loggers." in failed.err
    assert failed.err.rstrip().endswith("pip install 'bitplanes[loggers]'")
    assert not (tmp_path / "r").exists()


def test_loggers_and_callbacks_stand_beside_ours(train, tmp_path):
    done = train(
        "epochs=4", "+trainer.logger=true", f"+trainer.callbacks=[{EARLY % 'validation_accuracy'}]", "run_dir=r"
    )
    assert done.status == 0, done.err
    with (tmp_path / "r" / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        logged = [row["validation_accuracy"] for row in csv.DictReader(file) if row["validation_accuracy"]]
    with (tmp_path / "r" / "metrics.csv").open(newline="") as file:
        ours = [row["validation_accuracy"] for row in csv.DictReader(file)]
    assert len(ours) == 2  # stopped by the callback
    assert [float(value) for value in logged[:2]] == pytest.approx([float(value) for value in ours], abs=1e-5)


def test_a_seed_of_the_environment_is_its_number(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TASK", "3")
    assert train("epochs=1", "seed=${oc.env:TASK}", "run_dir=text").status == 0
    assert train("epochs=1", "seed=3", "run_dir=number").status == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("text", "number")]
    assert results[0]["seed"] == 3
    assert results[0]["accuracy"] == results[1]["accuracy"]


def test_validation_that_did_not_happen_is_empty_and_stays_so_after_a_resume(train, tmp_path, monkeypatch):
    from bnn.training import Classifier

    arguments = ("epochs=4", "+trainer.check_val_every_n_epoch=2", "augment=crop", "augment.padding=1")
    assert train(*arguments, "run_dir=whole").status == 0
    original = Classifier.on_train_epoch_start

    def stop(self):
        if self.current_epoch == 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", stop)
    assert train(*arguments, "run_dir=parts").status == 130
    monkeypatch.setattr(Classifier, "on_train_epoch_start", original)
    assert train(*arguments, "run_dir=parts").status == 0
    whole, parts = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    rows = list(csv.DictReader(whole.decode().splitlines()))
    assert [bool(row["validation_accuracy"]) for row in rows] == [False, True, False, True]
    assert train("epochs=4", "+trainer.check_val_every_n_epoch=2", "run_dir=plain").status == 0
    assert (tmp_path / "plain" / "metrics.csv").read_bytes() != whole  # the augmentation reaches the images


def test_a_sweep_names_all_that_failed_and_runs_the_others(train, tmp_path):
    done = train("-m", "epochs=1", "optimizer.lr=-1,0.01,nan", "run_dir='runs/${optimizer.lr}'")
    assert done.status == 2
    summary = done.err[done.err.index("error:") :]
    assert "2 failed" in summary
    assert "optimizer.lr=-1" in summary
    assert "optimizer.lr=nan" in summary
    assert "optimizer.lr=0.01" not in summary
    assert (tmp_path / "runs" / "0.01" / "result.json").exists()


def test_a_run_returns_its_validation_accuracy(train, tmp_path, monkeypatch):
    from experiments import train as module

    seen = []
    original = module.task
    monkeypatch.setattr(module, "task", lambda config: seen.append(original(config)))
    assert train("epochs=1", "run_dir=r").status == 0
    assert seen == [json.loads((tmp_path / "r" / "result.json").read_text())["accuracy"]["validation"]]


def test_a_quantizer_without_defaults_says_what_is_missing(train, tmp_path):
    folder = tmp_path / "mine" / "quantizer"
    folder.mkdir(parents=True)
    text = "name: own\nlabel: own\nweight: {_target_: bnn.quantizers.XnorWeight, _partial_: true}\n"
    (folder / "own.yaml").write_text(text)
    failed = train("--config-dir", "mine", "quantizer=own", "run_dir=r")
    assert failed.status == 2
    assert "defaults: [fp32]" in failed.err
    (folder / "own.yaml").write_text(f"defaults: [fp32]\n{text}")
    assert train("--config-dir", "mine", "epochs=1", "quantizer=own", "run_dir=r").status == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_unicode(train, monkeypatch, encoding, tmp_path):
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        done = train("epochs=1", "trainer.enable_progress_bar=true", "run_dir=r")
        print("\u2022")
    assert done.status == 0, done.err
    assert (tmp_path / "out").read_text(encoding=encoding).endswith("?\n")
