"""A language model from the outside: look at a text, train on it, go on after an interruption, convert."""

import json

import pytest
import torch

from bnn.training import Classifier

SMALL = (
    *("experiment=bitlinear_tinyshakespeare", "data=text", "data.file=poem.txt", "data.context=8", "name=poem"),
    *("model.num_classes=30", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=16"),
    *("epochs=2", "scheduler.warmup=0", "trainer.enable_progress_bar=false"),
)


@pytest.fixture
def poem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem.txt").write_text("two roads diverged in a yellow wood, and sorry i could not travel both\n" * 20)
    return tmp_path


def test_the_data_command_shows_a_passage(poem, command):
    done = command("experiments.data", "data=text", "data.file=poem.txt", "data.context=8")
    assert done.status == 0, done.err
    assert "poem: 21 different characters, 8 of them at once" in done.out
    assert "two roads diverged in a yellow wood" in done.out
    assert not list(poem.glob("*.png"))


def test_a_language_model_is_trained_and_converted(poem, command):
    whole = command("experiments.train", *SMALL, "run_dir=whole")
    assert whole.status == 0, whole.err
    assert "bits a character, validation" in whole.out
    result = json.loads((poem / "whole" / "result.json").read_text())
    assert set(result["bits_per_character"]) == {"validation", "test"}
    assert 0 < result["bits_per_character"]["test"] < 5
    assert result["data"]["name"] == "poem"
    assert result["findings"] is not None

    done = command("experiments.convert", "run=whole", "parity=2", "tolerance=0.05")
    assert done.status == 0, done.out + done.err
    converted = json.loads((poem / "whole" / "conversion.json").read_text())
    assert converted["test_images"] == 8 * result["data"]["test"]  # every token is predicted
    assert converted["bits_per_character_trained"] == pytest.approx(result["bits_per_character"]["test"], abs=1e-4)
    assert converted["bits_per_character_packed"] == pytest.approx(result["bits_per_character"]["test"], abs=0.01)

    done = command("experiments.collect", "folder=whole", "output=table.json")
    assert done.status == 0, done.err
    assert f"{result['bits_per_character']['test']:.3f}" in done.out

    done = command(
        *("experiments.benchmark", "suite=decoder", "run=whole", "tokens=4", "seconds=0.01", "least_calls=1"),
        "output=speed.json",
    )
    assert done.status == 0, done.err
    (row,) = json.loads((poem / "speed.json").read_text())["decoders"]
    assert row["same_tokens"] == 1
    assert all(row[side]["tokens_per_second"]["best"] > 0 for side in ("packed", "pytorch", "fp32"))


@pytest.mark.slow
def test_a_language_model_goes_on_to_the_same_weights(poem, monkeypatch, command):
    assert command("experiments.train", *SMALL, "run_dir=whole").status == 0
    begin = Classifier.on_train_epoch_start

    def interrupted(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        begin(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", interrupted)
    command("experiments.train", *SMALL, "run_dir=parts")
    assert not (poem / "parts" / "result.json").exists()
    monkeypatch.setattr(Classifier, "on_train_epoch_start", begin)
    assert command("experiments.train", *SMALL, "run_dir=parts").status == 0
    weights = [
        torch.load(poem / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_does_not_fit_is_named(poem, command):
    few = command("experiments.train", *SMALL, "model.num_classes=3")
    assert few.status == 2
    assert "has 3 outputs, poem has 21 classes: give model.num_classes=21" in few.err
    image = command("experiments.train", "data=text", "data.file=poem.txt", "data.context=8", "model=lenet5")
    assert image.status == 2
    assert "LeNet5 does not take poem's (8,) tokens" in image.err
    assert not (poem / "runs").exists()
