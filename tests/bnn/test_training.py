"""One run from the inside: latent weights stay in bounds, checkpoints of other networks are refused."""

import dataclasses
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from bnn.data import digits
from bnn.latent import latent_weights
from bnn.models import DigitsCNN
from bnn.quantizers import SteSign, XnorWeight
from bnn.training import Classifier, RunError, load_network, provenance, seed_everything, train

ADAM = partial(torch.optim.Adam, lr=0.05)
TINY = {"width": 4, "weight_quantizer": XnorWeight, "input_quantizer": SteSign}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def run(network, folder, epochs=1, seed=0, **options):
    classifier = partial(Classifier, optimizer=ADAM, **options)
    return train(classifier, network, digits(), folder, epochs=epochs, batch_size=200, seed=seed, trainer=QUIET)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    seed_everything(0)
    network = DigitsCNN(**TINY)
    return folder, network, run(network, folder, 3, latent_clip=0.1, center_latents=True)


def test_what_a_run_measures(finished):
    _, network, outcome = finished
    data = digits()
    network.eval()
    with torch.no_grad():
        for split, measured in ((data.test, outcome.test_accuracy), (data.validation, outcome.validation_accuracy)):
            right = network(data.normalizer()(split.images)).argmax(1) == split.labels
            assert measured == pytest.approx(float(right.float().mean()), abs=1e-6)
    assert outcome.epochs == 3
    assert outcome.seconds > 0
    assert outcome.train_accuracy > 0.3


def test_latent_weights_are_centred_and_clipped(finished):
    _, network, _ = finished
    weights = dict(latent_weights(network))
    assert set(weights) == {"conv2.weight", "conv3.weight", "linear4.weight"}
    assert all(w.abs().max() <= 0.1 for w in weights.values())
    assert network.conv1.weight.abs().max() > 0.1


def test_weights_come_back(finished):
    folder, network, _ = finished
    again = load_network(DigitsCNN(**TINY), folder)
    assert not again.training
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_loaded_network_is_trained_on_in_training_mode(finished, tmp_path):
    folder, _, _ = finished
    network = load_network(DigitsCNN(**TINY), folder)
    frozen = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1]
    before = network.norm1.running_mean.clone(), frozen.running_mean.clone()
    run(network, tmp_path / "all")
    assert not torch.equal(network.norm1.running_mean, before[0])
    network.train()
    frozen.eval()
    before = network.norm1.running_mean.clone(), frozen.running_mean.clone()
    with pytest.warns(UserWarning, match="in eval mode"):  # Lightning's
        run(network, tmp_path / "part")
    assert not torch.equal(network.norm1.running_mean, before[0])
    assert torch.equal(frozen.running_mean, before[1])


def test_other_networks_are_refused(finished, tmp_path):
    folder, _, _ = finished
    with pytest.raises(RunError, match="does not fit DigitsCNN"):
        load_network(DigitsCNN(width=5), folder)
    with pytest.raises(RunError, match="is of another network"):
        run(DigitsCNN(width=5), folder, epochs=4)
    with pytest.raises(RunError, match="is it the folder of a finished run"):
        load_network(DigitsCNN(), tmp_path)


class Killed(Callback):
    """A termination that comes while the test split is measured."""

    def on_test_start(self, trainer, pl_module):
        signal.raise_signal(signal.SIGTERM)  # os.kill ends the process at once on Windows


def test_a_termination_during_an_evaluation_ends_the_run(tmp_path):
    classifier = partial(Classifier, optimizer=ADAM)
    with pytest.raises(SystemExit) as stop:
        train(classifier, DigitsCNN(**TINY), digits(), tmp_path, epochs=1, batch_size=600, seed=0, trainer=QUIET,
              callbacks=[Killed()])  # fmt: skip
    assert stop.value.code == 128 + signal.SIGTERM


def outcome_of(folder, epochs=3, callbacks=(), **trainer):
    classifier = partial(Classifier, optimizer=ADAM)
    torch.manual_seed(0)
    return train(classifier, DigitsCNN(**TINY), digits(), folder, epochs=epochs, batch_size=400, seed=0,
                 trainer=QUIET | trainer, callbacks=callbacks)  # fmt: skip


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    ("options", "epochs", "steps", "stopped_by"),
    [
        ({}, 3, 9, None),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, 3, 6, None),
        ({"accumulate_grad_batches": 3}, 3, 3, None),
        ({"max_steps": 4}, 2, 4, "trainer.max_steps"),
        ({"max_steps": 6}, 2, 6, "trainer.max_steps"),
        ({"max_steps": 9}, 3, 9, None),
        ({"max_steps": 99}, 3, 9, None),
        ({"max_time": {"microseconds": 1}}, 1, 3, "trainer.max_time"),
        ({"fast_dev_run": True}, 1, 1, "trainer.fast_dev_run"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_an_outcome_says_what_was_done(options, epochs, steps, stopped_by, tmp_path):
    done = outcome_of(tmp_path, **options)
    assert (done.epochs, done.steps, done.stopped_by) == (epochs, steps, stopped_by)
    assert (done.validation_examples, done.test_examples) == (200, 400)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == epochs + 1
    assert (tmp_path / "checkpoints").exists() == (stopped_by != "trainer.fast_dev_run")
    if (tmp_path / "checkpoints").exists() and "max_time" not in options:  # its result was lost: the same again
        again = outcome_of(tmp_path, **options)
        assert dataclasses.replace(again, seconds=done.seconds) == done
        assert again.seconds > done.seconds


def test_an_early_stop_is_told(tmp_path):
    stop = EarlyStopping("train_loss", mode="max", patience=1, check_on_train_epoch_end=True)
    done = outcome_of(tmp_path, epochs=20, callbacks=[stop])
    assert (done.epochs, done.steps, done.stopped_by) == (2, 6, "early stopping")


def test_a_run_that_time_cut_short_goes_on_to_the_same_end(tmp_path):
    whole = outcome_of(tmp_path / "whole")
    limit = {"max_time": {"microseconds": 1}}
    parts = [outcome_of(tmp_path / "parts", **limit) for _ in range(3)]
    assert [(part.epochs, part.stopped_by) for part in parts] == [
        (1, "trainer.max_time"),
        (2, "trainer.max_time"),
        (3, None),
    ]
    assert [part.interruptions for part in parts] == [0, 1, 2]
    assert dataclasses.replace(parts[-1], seconds=whole.seconds, interruptions=0) == whole
    curves = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("content", [b"", b"text", b"no checkpoint", "half", "other"])
def test_a_damaged_checkpoint_is_named(content, finished, tmp_path):
    folder, _, _ = finished
    whole = (folder / "checkpoints" / "last.ckpt").read_bytes()
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    if content == "other":
        torch.save({"weights": 1}, file)
    else:
        file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    before = file.read_bytes()
    with pytest.raises(RunError, match=r"last\.ckpt is damaged; remove it"):
        load_network(DigitsCNN(**TINY), tmp_path)
    with pytest.raises(RunError, match=r"last\.ckpt is damaged; remove it"):
        run(DigitsCNN(**TINY), tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize("clip", [0, -1])
def test_bad_clips_are_refused(clip):
    with pytest.raises(ValueError, match="latent_clip"):
        Classifier(DigitsCNN(), ADAM, latent_clip=clip)


def test_provenance_names_versions_and_hardware():
    origin = provenance()
    # The build ("+cu130") stands in torch's own version, not always in the package's.
    assert origin["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert origin["hardware"]["cores"] >= 1
    assert "/" not in str(origin["versions"])
