"""Data sets: fixed disjoint splits, statistics of the training split only, and damage that is named."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bnn.data import Batches, DataError, ImageData, RandomCropFlip, Split, digits, mnist
from bnn.data import mnist as mnist_function
from bnn.data.idx import parse_idx
from bnn.data.text import Windows

mnist_module = __import__("sys").modules["bnn.data.mnist"]


def rows(split):
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def test_digits_are_all_scans_once():
    data = digits()
    splits = (data.train, data.validation, data.test)
    assert [len(s.labels) for s in splits] == [1197, 200, 400]
    found = torch.cat([s.images for s in splits]).numpy().reshape(-1, 64)
    labels = torch.cat([s.labels for s in splits]).numpy()
    expected = load_digits()
    order, other = np.lexsort([*found.T, labels]), np.lexsort([*expected.data.T, expected.target])
    np.testing.assert_array_equal(found[order], expected.data[other])
    np.testing.assert_array_equal(labels[order], expected.target[other])
    assert data.input_shape == (1, 8, 8)


def test_splits_are_the_same_every_time_and_balanced():
    one, two = digits(), digits()
    assert torch.equal(one.test.images, two.test.images)
    # Changing the split would make every result before it incomparable.
    digest = hashlib.sha256(one.test.images.numpy().tobytes() + one.test.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "f78065365613bd1d"
    counts = torch.bincount(one.test.labels)
    assert counts.min() >= 38
    assert counts.max() <= 42


def test_normalizing_uses_the_training_split():
    data = digits()
    x = data.normalizer()(data.train.images)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std(correction=0)) - 1) < 1e-5
    assert float(data.mean) != pytest.approx(float(data.test.images.float().mean() / 16))


def test_batches_are_the_whole_split_in_an_order_of_epoch_and_seed():
    data = digits()

    def epoch(batches, number):
        batches.set_epoch(number)
        return torch.cat([labels for _, labels in batches])

    def make(**changes):
        return Batches(data.train, data.normalizer(), **{"batch_size": 100, "shuffle": True, "seed": 1, **changes})

    first = epoch(make(), 0)
    assert len(first) == 1197
    assert torch.equal(torch.sort(first).values, torch.sort(data.train.labels).values)
    assert torch.equal(first, epoch(make(), 0))
    assert not torch.equal(first, epoch(make(), 1))
    assert not torch.equal(first, epoch(make(seed=2), 0))
    assert torch.equal(epoch(make(shuffle=False), 3), data.train.labels)
    assert (len(make()), len(make(drop_last=True))) == (12, 11)
    assert len(epoch(make(drop_last=True), 0)) == 1100
    one_after_the_other = make()
    list(one_after_the_other)
    second = torch.cat([labels for _, labels in one_after_the_other])
    assert torch.equal(second, epoch(make(), 1))
    images, _ = next(iter(make(augment=lambda x: x * 0)))
    assert images.abs().max() == 0


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_together_see_the_batches_of_one(processes):
    data = digits()

    def make(shuffle):
        text = Windows(torch.arange(1000), 10, 8, shuffle, seed=1)
        return Batches(data.train, data.normalizer(), 70, shuffle, seed=1), text

    for shuffle in (True, False):
        for kind, whole in enumerate(make(shuffle)):
            ranks = [make(shuffle)[kind].share(rank, processes) for rank in range(processes)]
            assert {len(rank) for rank in ranks} == {len(whole)}
            for at, (together, *parts) in enumerate(zip(whole, *ranks, strict=True)):
                counts = [rank.counts(at) for rank in ranks]
                own = [one for one, _ in counts]
                assert {every for _, every in counts} == {len(together[0])}
                assert max(own) - min(own) <= 1
                for values, *shares in zip(together, *parts, strict=True):
                    kept = [share[:count] for share, count in zip(shares, own, strict=True)]
                    assert torch.equal(torch.cat(kept), values)
                    assert all(len(share) == max(1, count) for share, count in zip(shares, own, strict=True))


def test_processes_draw_augmentations_of_their_own_and_the_first_those_of_one_alone():
    same = Split(torch.arange(64, dtype=torch.uint8).expand(64, 64).reshape(64, 1, 8, 8), torch.zeros(64).long())

    def make(rank, processes, size):
        return Batches(same, lambda x: x.float(), size, True, 0, augment=RandomCropFlip(2)).share(rank, processes)

    alone, first, second = make(0, 1, 16), make(0, 2, 32), make(1, 2, 32)
    for (images, _), (ours, _), (theirs, _) in zip(alone, first, second, strict=False):
        assert torch.equal(images, ours)
        assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(("rank", "processes"), [(2, 2), (-1, 2), (0, 0)])
def test_bad_ranks_are_refused(rank, processes):
    with pytest.raises(ValueError, match="rank must be one of"):
        Windows(torch.arange(100), 10, 2).share(rank, processes)


@pytest.mark.parametrize("size", [0, -1])
def test_bad_batch_sizes_are_refused(size):
    with pytest.raises(ValueError, match="batch_size"):
        Batches(digits().train, lambda x: x, size, False, 0)


def test_bad_splits_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        Split(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"int64 \(2,\)"):
        Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small data set in MNIST's format, whose checksums the module is told."""
    rng = np.random.default_rng(0)
    sizes = {"train": 6000, "t10k": 50}
    files = {}
    for part, n in sizes.items():
        contents = {
            f"{part}-images-idx3-ubyte": idx(rng.integers(0, 256, (n, 28, 28))),
            f"{part}-labels-idx1-ubyte": idx(rng.integers(0, 10, n)),
        }
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            files[name] = ("", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(mnist_module, "FILES", files)
    return tmp_path


def test_mnist_from_a_folder(folder):
    data = mnist(str(folder))
    assert isinstance(data, ImageData)
    assert [len(s.labels) for s in (data.train, data.validation, data.test)] == [1000, 5000, 50]
    assert not rows(data.train) & rows(data.validation)
    assert data.input_shape == (1, 28, 28)


@pytest.mark.parametrize("sub", ["mnist", "MNIST/raw"])
def test_mnist_from_a_subfolder_and_gzipped(folder, tmp_path_factory, sub):
    expected = mnist(str(folder)).test.images
    root = tmp_path_factory.mktemp("root")
    (root / sub).mkdir(parents=True)
    for file in folder.iterdir():
        (root / sub / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert torch.equal(mnist(str(root)).test.images, expected)


def test_missing_and_damaged_files_are_named(folder):
    file = folder / "t10k-labels-idx1-ubyte"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\x0b")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is damaged.*fetch it again"):
        mnist(str(folder))
    file.unlink()
    with pytest.raises(DataError, match=r"neither t10k-labels-idx1-ubyte nor .*data\.root"):
        mnist(str(folder))
    (folder / f"{file.name}.gz").write_bytes(gzip.compress(whole)[:-8])
    with pytest.raises(DataError, match="damaged"):
        mnist(str(folder))
    with pytest.raises(DataError, match="is no folder"):
        mnist(str(folder / "nothing"))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01", b"\0\0\x0d\x01\0\0\0\1x", b"\0\0\x08\x01\0\0\0\2x"])
def test_malformed_idx_files_are_refused(content):
    with pytest.raises(DataError, match="labels"):
        parse_idx(content, "labels")


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    import pooch

    def retrieve(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "os_cache", lambda _name: tmp_path)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=r"no route to host.*data\.root=FOLDER"):
        mnist_function()
    with pytest.raises(DataError, match=r"data\.download is false"):
        mnist_function(download=False)


def test_download_checks_and_keeps_files(folder, tmp_path_factory, monkeypatch):
    """pooch itself, on files instead of a server."""
    import pooch

    cache = tmp_path_factory.mktemp("cache")
    served = tmp_path_factory.mktemp("served")
    files = {}
    for file in folder.iterdir():
        content = gzip.compress(file.read_bytes(), mtime=0)
        (served / f"{file.name}.gz").write_bytes(content)
        files[file.name] = (hashlib.md5(content).hexdigest(), mnist_module.FILES[file.name][1])
    files = {name: files[name] for name in mnist_module.FILES}
    monkeypatch.setattr(mnist_module, "FILES", files)
    asked = []

    def copy(url, output_file, _pooch):
        asked.append(url)
        if url.startswith("https://one/"):
            raise OSError("gone")
        with open(output_file, "wb") as out:
            out.write((served / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(mnist_module, "MIRRORS", ("https://one/", "https://two/"))
    monkeypatch.setattr(pooch, "os_cache", lambda _name: cache)
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_args, **_options: copy)
    expected = mnist(str(folder)).test.images
    assert torch.equal(mnist_function().test.images, expected)
    assert len(asked) == 8
    assert torch.equal(mnist_function().test.images, expected)
    assert len(asked) == 8


# -- augmentation -----------------------------------------------------------------------------------------------------


def test_crops_and_mirrors_are_those_of_a_loop():
    """Every image is one of the windows of its padded self, or of its mirror; and all of them come up."""
    images = torch.arange(1.0, 1 + 40 * 2 * 3 * 4).reshape(40, 2, 3, 4)
    for mode in ("constant", "reflect"):
        out = RandomCropFlip(padding=1, flip=0.5, mode=mode)(images)
        seen = set()
        for image, changed in zip(images, out, strict=True):
            padded = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)), mode=mode)
            windows = {
                (top, left, step): padded[:, top : top + 3, left : left + 4][:, :, ::step]
                for top in range(3)
                for left in range(3)
                for step in (1, -1)
            }
            found = [which for which, window in windows.items() if np.array_equal(window, changed.numpy())]
            assert len(found) == 1
            seen.add(found[0])
        assert {key[0] for key in seen} == {key[1] for key in seen} == {0, 1, 2}
        assert {key[2] for key in seen} == {1, -1}
    assert torch.equal(RandomCropFlip(padding=0, flip=1.0)(images), images.flip(3))
    assert torch.equal(RandomCropFlip(padding=0, flip=0.0)(images), images)


def test_augmentation_follows_seed_epoch_and_batch_alone():
    data = digits()

    def epoch(number, seed=1, **changes):
        batches = Batches(data.train, data.normalizer(), 300, False, seed, **{"augment": RandomCropFlip(2), **changes})
        batches.set_epoch(number)
        return [images for images, _ in batches]

    torch.manual_seed(5)
    first = epoch(3)
    expected = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4), expected)  # the augmentation drew nothing from the generator of the training
    again = epoch(3)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, epoch(4)))
    assert not any(map(torch.equal, first, epoch(3, seed=2)))
    same = torch.zeros(600, 1, 8, 8, dtype=torch.uint8)
    same[:] = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    twice = Batches(Split(same, torch.zeros(600, dtype=torch.int64)), lambda x: x.float(), 300, False, 0,
                    augment=RandomCropFlip(2))  # fmt: skip
    one, two = (images for images, _ in twice)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": -1}, "padding"),
        ({"padding": 1.5}, "padding"),
        ({"flip": 2}, "flip"),
        ({"mode": "mirror"}, "mode"),
    ],
)
def test_bad_augmentations_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RandomCropFlip(**options)
    with pytest.raises(ValueError, match="cannot reflect images of 8x8"):
        RandomCropFlip(8, mode="reflect")(torch.zeros(1, 1, 8, 8))
