"""One run from the inside: latent weights stay in bounds, checkpoints of other networks are refused."""

import signal
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

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


@pytest.mark.parametrize("clip", [0, -1])
def test_bad_clips_are_refused(clip):
    with pytest.raises(ValueError, match="latent_clip"):
        Classifier(DigitsCNN(), ADAM, latent_clip=clip)


def test_provenance_names_versions_and_hardware():
    origin = provenance()
    assert origin["versions"]["torch"] == torch.__version__
    assert origin["hardware"]["cores"] >= 1
    assert "/" not in str(origin["versions"])
