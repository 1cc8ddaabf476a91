"""Images in their files: what is cut out, that workers change nothing, and what each mistake is called."""

import numpy as np
import pytest
import torch
from PIL import Image

from bnn.data import Cutout, DataError, ImageFiles, InTurn, RandomResizedCrop, folder, imagenet

RNG = np.random.default_rng(0)


def save(path, height=30, width=40, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    top = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("n01", "n02")):
        for i in range(10):
            save(top / "train" / name / f"{i}.JPEG", 30 + 3 * i, 44 - 2 * label, quality=95)
        for i in range(3):
            save(top / "val" / name / f"{i}.png", 24, 36)
    return top


def data(root, workers=0, **options):
    return imagenet(str(root), size=16, resize=20, validation=0.2, num_workers=workers, **options)


def batches(found, split="train", **options):
    return list(found.batches(split, 4, **options))


def test_the_splits_are_those_of_the_folders(root):
    found = data(root)
    assert [found.count(split) for split in ("train", "validation", "test")] == [16, 4, 6]
    assert {file.parent.parent.name for file in found.test.files} == {"val"}
    assert not set(found.train.files) & set(found.validation.files)
    assert found.classes == ("n01", "n02")
    assert (found.name, found.kind, found.input_shape) == ("imagenet", "images", (3, 16, 16))
    for split in (found.train, found.validation, found.test):
        assert [found.classes[label] for label in split.labels] == [file.parent.name for file in split.files]
    assert torch.bincount(found.validation.labels).tolist() == [2, 2]


def test_evaluation_scales_the_shorter_side_and_cuts_the_middle(root):
    found = data(root)
    images = torch.cat([inputs for inputs, _ in batches(found, "test")])
    pixels = found.normalizer().pixels(images)
    for row, file in enumerate(found.test.files):
        with Image.open(file) as image:  # 24 x 36 -> 20 x 30, of which 16 x 16
            scaled = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pixels[row], scaled[2:18, 7:23].transpose(2, 0, 1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[0], ((pixels[0] / 255).permute(1, 2, 0) - mean).div(std).permute(2, 0, 1))
    raw = torch.cat([inputs for inputs, _ in batches(found, "test", pixels=True)])
    assert torch.equal(raw, pixels)


@pytest.mark.parametrize("augment", [None, InTurn([RandomResizedCrop(), Cutout(4)])])
def test_workers_change_nothing_and_seed_and_epoch_decide(root, augment):
    def epoch(workers, number, seed=0):
        loader = data(root, workers).batches("train", 6, shuffle=True, seed=seed, augment=augment)
        loader.set_epoch(number)
        state = torch.get_rng_state()
        found = list(loader)
        assert torch.equal(state, torch.get_rng_state())  # nothing else that draws notices
        assert len(found) == len(loader) == 3
        return torch.cat([inputs for inputs, _ in found]), torch.cat([labels for _, labels in found])

    images, labels = epoch(0, 3)
    assert torch.bincount(labels).tolist() == [8, 8]
    for workers in (1, 2):
        again, same = epoch(workers, 3)
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    assert not torch.equal(images, epoch(0, 4)[0])
    assert not torch.equal(images, epoch(0, 3, seed=1)[0])
    if augment is not None:
        flat = images.flatten(2).sum(1)
        assert ((flat == 0).sum(1) > 0).all()  # Cutout ran


def test_random_parts_are_of_the_shares_and_ratios():
    generator = np.random.default_rng(0)
    shares, ratios, mirrored = [], [], []
    for _ in range(2000):
        (left, top, right, bottom), flip = RandomResizedCrop(scale=(0.2, 0.6)).part_of(300, 400, generator)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / 120_000)
        ratios.append((right - left) / (bottom - top))
        mirrored.append(flip)
    assert min(shares) > 0.199
    assert max(shares) < 0.601
    assert abs(np.mean(shares) - 0.4) < 0.02
    assert min(ratios) > 0.749
    assert max(ratios) < 1.334
    assert abs(np.mean(np.log(ratios))) < 0.02
    assert abs(np.mean(mirrored) - 0.5) < 0.05


def test_a_whole_part_is_the_whole_image(root):
    found = data(root)
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=(36 / 24, 36 / 24), flip=1.0)
    images = found.normalizer().pixels(next(iter(found.batches("test", 6, augment=crop)))[0])
    with Image.open(found.test.files[2]) as image:
        whole = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(images[2], whole[:, ::-1].transpose(2, 0, 1), atol=1)


def test_a_folder_of_ones_own_stays_in_its_files(root):
    options = {"size": 14, "channels": 1, "in_memory": False, "num_workers": 0}
    found = folder(str(root), **options)
    assert isinstance(found, ImageFiles)
    assert found.count("validation") == 6  # the folder val
    assert found.input_shape == (1, 14, 14)
    assert found.resize == 16
    kept = folder(str(root), size=14, channels=1)
    assert torch.equal(kept.train.labels, found.train.labels)
    pixels = torch.from_numpy(found.pictures(range(found.count("train")))).double() / 255
    assert float(found.mean) == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert float(found.std) == pytest.approx(float(pixels.std(correction=0)), abs=1e-6)
    with pytest.raises(DataError, match="takes square images"):
        folder(str(root), **options | {"size": (14, 20)})
    with pytest.raises(DataError, match=r"data.resize must be a whole number of at least 14, got 13"):
        folder(str(root), **options, resize=13)


def test_a_damaged_file_is_named(root, tmp_path):
    for name in ("a", "b"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "4.png").write_bytes(b"no image")
    found = folder(str(tmp_path), size=8, in_memory=False, num_workers=0, test=0.1)
    with pytest.raises(DataError, match=r"4\.png is no image"):
        for split in ("train", "validation", "test"):
            batches(found, split)


def test_mistakes_with_imagenet_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"needs data\.root=FOLDER with train/CLASS"):
        imagenet()
    with pytest.raises(DataError, match=r"is no folder; give the folder with ImageNet's folders train and val$"):
        imagenet(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="has no folder train"):
        imagenet(str(tmp_path))
    save(tmp_path / "train" / "n01" / "a.png")
    save(tmp_path / "train" / "n02" / "a.png")
    with pytest.raises(DataError, match="has no folder val"):
        imagenet(str(tmp_path))
    save(tmp_path / "val" / "a.png")
    with pytest.raises(DataError, match="has no folders; move each image into the folder of its class"):
        imagenet(str(tmp_path))
    save(tmp_path / "val" / "n03" / "a.png")
    with pytest.raises(DataError, match=r"has classes that .* has not: n03"):
        imagenet(str(tmp_path))
    with pytest.raises(DataError, match=r"data\.num_workers must be a whole number of at least 0, got -1"):
        data(root, -1)


def test_processes_decode_their_parts_of_the_same_batches(root):
    found = data(root)
    options = {"shuffle": True, "seed": 3, "augment": RandomResizedCrop()}
    together = batches(found, **options)
    parts = [list(found.batches("train", 4, **options).share(rank, 2)) for rank in range(2)]
    for whole, *shares in zip(together, *parts, strict=True):
        assert all(torch.equal(torch.cat(values), value) for value, *values in zip(whole, *shares, strict=True))
