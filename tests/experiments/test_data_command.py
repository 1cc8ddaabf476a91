"""The command that shows a data set, the contact sheet it draws, and training on one's own data."""

import json

import numpy as np
import pytest
from PIL import Image

from bnn.data import digits
from paper_figures.contact_sheet import GAP, draw, sheet


def test_a_sheet_shows_the_first_images_of_each_class():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 5), np.uint8)
    labels = np.array([1, 0, 1, 1, 0, 2])
    out = sheet(images, labels, [0, 1, 2], 2, 99)
    assert out.shape == (3 * 4 + 2 * GAP, 2 * 5 + GAP, 3)
    corners = out[:: 4 + GAP, :: 5 + GAP, 0]
    assert corners.tolist() == [[1, 4], [0, 2], [5, 99]]
    assert (out[4 : 4 + GAP] == 99).all()


def test_the_figure_names_the_classes():
    data = digits()
    axes = draw(data.train.images.numpy(), data.train.labels.numpy(), 16).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(i) for i in range(10)]
    shown = np.asarray(axes.images[0].get_array())
    first = int(np.flatnonzero(data.train.labels == 0)[0])
    np.testing.assert_array_equal(shown[:8, :8], data.train.images[first, 0])


@pytest.mark.parametrize("word", ["name=digits", "data=digits"])
def test_the_command_prints_and_draws(tmp_path, monkeypatch, command, word):
    monkeypatch.chdir(tmp_path)
    done = command("experiments.data", word, "sheet=sheets/NAME.png")
    assert done.status == 0, done.err
    for text in (
        "digits: 10 classes, images 1 x 8 x 8",
        "training images, where 1 is white: mean",
        "1,197",
        "written:",
    ):
        assert text in done.out
    with Image.open(tmp_path / "sheets" / "digits.png") as image:
        assert image.width > 1000


def test_a_sheet_of_few_images_is_as_wide_as_they_are(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        for i in range(8):
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (9 * i, 0, 0)).save(tmp_path / "mine" / name / f"{i}.jpg")
    for columns in (16, 3):
        done = command("experiments.data", "data=folder", "data.root=mine", f"columns={columns}")
        assert done.status == 0, done.err
        with Image.open(tmp_path / "mine.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        dark = np.flatnonzero((pixels.max(2) < 100).any(0))
        assert dark[-1] > 0.9 * pixels.shape[1]


def test_training_on_a_folder_of_ones_own(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 180)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(24):
            Image.fromarray(generator.integers(low, low + 70, (9, 11), np.uint8)).save(
                tmp_path / "mine" / name / f"{i}.png"
            )
    own = ("data=folder", "data.root=mine", "data.size=8", "data.channels=1", "epochs=8", "batch_size=8")
    quiet = ("trainer.enable_progress_bar=false", "doctor.every=null", "quantizer=xnor")
    done = command("experiments.train", *own, *quiet, "+model.num_classes=2")
    assert done.status == 0, done.err
    (file,) = (tmp_path / "runs").rglob("result.json")
    result = json.loads(file.read_text())
    assert result["data"] == {"name": "mine", "train": 34, "validation": 4, "test": 10}
    assert result["accuracy"]["test"] > 0.6
    few = command("experiments.train", *own, *quiet, "+model.num_classes=1", "seed=1")
    assert few.status == 2
    assert "has 1 outputs, mine has 2 classes: give model.num_classes=2" in few.err
    assert not list((tmp_path / "runs").rglob("seed1"))


def test_imagenet_of_hugging_face_is_the_training_that_its_class_folders_give(tmp_path, monkeypatch, command):
    tables = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    generator = np.random.default_rng(0)
    for split, folder, count in (("train", "train", 40), ("validation", "val", 12)):
        images, labels = [], [int(label) for label in generator.integers(0, 2, count)]
        for i, label in enumerate(labels):
            pixels = generator.integers(60 * label, 60 * label + 180, (12 + i % 3, 14, 3), np.uint8)
            file = tmp_path / "folders" / folder / "ab"[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            images.append({"path": file.name, "bytes": file.read_bytes()})
        features = tables.Features({"image": tables.Image(), "label": tables.ClassLabel(names=["a", "b"])})
        rows = tables.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(str(tmp_path / "files" / f"{split}.parquet"))
    small = ("data.size=8", "data.resize=9", "data.num_workers=0", "data.validation=0.2", "augment=resized_crop")
    model = ("model=digits_cnn", "+model.num_classes=2", "+model.in_channels=3", "model.width=8", "quantizer=xnor")
    quiet = ("trainer.enable_progress_bar=false", "doctor.every=null", "epochs=3", "batch_size=8")
    found = []
    for data, root in (("imagenet", "folders"), ("imagenet_huggingface", "files")):
        chosen = (f"data={data}", f"data.root={root}", f"run_dir=of_{root}")
        done = command("experiments.train", *chosen, *small, *model, *quiet)
        assert done.status == 0, done.err
        result = json.loads((tmp_path / f"of_{root}" / "result.json").read_text())
        found.append((result["accuracy"], result["data"], (tmp_path / f"of_{root}" / "metrics.csv").read_text()))
    assert found[0] == found[1]
    assert found[0][1] == {"name": "imagenet", "train": 32, "validation": 8, "test": 12}
