"""Data sets from files that the tests make: what is read, how it is split, and what each mistake is called."""

import csv
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from bnn.data import DataError, arrays, cifar10, cifar100, datasets, fashion_mnist, folder, gtsrb, svhn
from bnn.data.image_files import read_image
from tests.bnn.test_data import idx

cifar_module, gtsrb_module, svhn_module, fashion_module = (
    __import__("sys").modules[f"bnn.data.{name}"] for name in ("cifar", "gtsrb", "svhn", "fashion_mnist")
)
RNG = np.random.default_rng(0)


def digest(content):
    return hashlib.md5(content).hexdigest()


def disjoint(data):
    splits = [{image.numpy().tobytes() for image in one.images} for one in (data.train, data.validation, data.test)]
    return not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])


# -- Fashion-MNIST ----------------------------------------------------------------------------------------------------


def test_fashion_mnist(tmp_path, monkeypatch):
    files = {}
    for name, shape in zip(fashion_module.FILES, ((5300, 28, 28), (5300,), (40, 28, 28), (40,)), strict=True):
        content = idx(RNG.integers(0, 10, shape))
        (tmp_path / name).write_bytes(content)
        files[name] = ("", digest(content))
    with pytest.raises(DataError, match=r"is damaged: the MD5 of its content.*Fashion-MNIST's"):
        fashion_mnist(str(tmp_path))
    monkeypatch.setattr(fashion_module, "FILES", files)
    data = fashion_mnist(str(tmp_path))
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [300, 5000, 40]
    assert (data.name, data.num_classes, len(data.classes), data.input_shape) == ("fashion_mnist", 10, 10, (1, 28, 28))


# -- CIFAR ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with both binary versions, of few images, and the records of CIFAR-10."""
    monkeypatch.setattr(cifar_module, "BATCH", 40)
    monkeypatch.setattr(cifar_module, "VALIDATION", 50)
    kept = {}
    for archive, classes in ((cifar_module.CIFAR10, (10,)), (cifar_module.CIFAR100, (20, 100))):
        (tmp_path / archive.folder).mkdir()
        for name in (*archive.train, archive.test):
            count = 40 if name == archive.test else 200 // len(archive.train)
            labels = np.stack([RNG.permutation(count) % n for n in classes], 1).astype(np.uint8)
            pixels = RNG.integers(0, 256, (count, 3072), np.uint8)
            kept[name] = np.concatenate([labels, pixels], 1)
            (tmp_path / archive.folder / name).write_bytes(kept[name].tobytes())
    return tmp_path, kept


def test_cifar_from_files(cifar):
    root, kept = cifar
    data = cifar10(str(root), name="cifar10_jpeg")
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [150, 50, 40]
    assert disjoint(data)
    assert (data.name, data.num_classes, data.classes[3]) == ("cifar10_jpeg", 10, "cat")
    record = kept["test_batch.bin"][7]
    assert int(data.test.labels[7]) == record[0]
    red = record[1 : 1 + 1024].reshape(32, 32)  # row by row
    np.testing.assert_array_equal(data.test.images[7, 0], red)
    np.testing.assert_array_equal(data.test.images[7, 2], record[-1024:].reshape(32, 32))
    assert torch.equal(cifar10(str(root / "cifar-10-batches-bin")).test.images, data.test.images)
    # The split is the same every time, and has each class in proportion.
    assert torch.equal(cifar10(str(root)).validation.images, data.validation.images)
    assert torch.bincount(data.validation.labels).tolist() == [5] * 10


def test_cifar100_has_two_kinds_of_labels(cifar):
    root, kept = cifar
    fine, coarse = cifar100(str(root)), cifar100(str(root), labels="coarse")
    np.testing.assert_array_equal(fine.test.labels, kept["test.bin"][:, 1])
    np.testing.assert_array_equal(coarse.test.labels, kept["test.bin"][:, 0])
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert torch.equal(fine.test.images, coarse.test.images)
    assert fine.name != coarse.name
    with pytest.raises(DataError, match=r"fine .* or coarse"):
        cifar100(str(root), labels="both")


def test_cifar_from_the_archive(cifar, tmp_path_factory, monkeypatch):
    root, _ = cifar
    expected = cifar10(str(root))
    place = tmp_path_factory.mktemp("archive")
    path = place / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / "cifar-10-batches-bin", "cifar-10-batches-bin")
    with pytest.raises(DataError, match=r"is damaged: its MD5 is .*CIFAR-10's is c32a1d4a"):
        cifar10(str(place))
    monkeypatch.setattr(cifar_module, "CIFAR10", cifar_module.CIFAR10._replace(md5=digest(path.read_bytes())))
    assert torch.equal(cifar10(str(place)).train.images, expected.train.images)


def test_mistakes_with_cifar_are_named(cifar):
    root, kept = cifar
    file = root / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin of CIFAR-10 must have 122,920 bytes.*122,919"):
        cifar10(str(root))
    bad = kept["data_batch_3.bin"].copy()
    bad[0, 0] = 10
    file.write_bytes(bad.tobytes())
    with pytest.raises(DataError, match="has a label 10"):
        cifar10(str(root))
    file.unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
        cifar10(str(root))
    (root / "empty" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match=r"neither test_batch\.bin.*version for Python"):
        cifar10(str(root / "empty"))
    with pytest.raises(DataError, match="is no folder"):
        cifar10(str(root / "nothing"))


# -- SVHN and GTSRB ---------------------------------------------------------------------------------------------------


def test_svhn(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn_module, "VALIDATION", 10)
    counts = {"train_32x32.mat": 40, "test_32x32.mat": 20, "extra_32x32.mat": 30}
    images, labels, files = {}, {}, {}
    for name, count in counts.items():
        images[name] = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels[name] = RNG.permutation(count)[:, None] % 10 + 1  # 10 is the digit 0
        savemat(tmp_path / name, {"X": images[name], "y": labels[name].astype(np.uint8)})
        files[name] = digest((tmp_path / name).read_bytes())
    monkeypatch.setattr(svhn_module, "FILES", files)
    data = svhn(str(tmp_path))
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [30, 10, 20]
    np.testing.assert_array_equal(data.test.images[5, 1], images["test_32x32.mat"][:, :, 1, 5])
    np.testing.assert_array_equal(data.test.labels, labels["test_32x32.mat"][:, 0] % 10)
    more = svhn(str(tmp_path), extra=True)
    assert len(more.train.labels) == 60
    assert more.name != data.name
    assert torch.equal(more.validation.images, data.validation.images)
    (tmp_path / "test_32x32.mat").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test_32x32\.mat is damaged"):
        svhn(str(tmp_path))
    (tmp_path / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"has no train_32x32\.mat"):
        svhn(str(tmp_path))


def ppm(value, height=20, width=30):
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(stream, "PPM")
    return stream.getvalue()


def test_gtsrb_validates_on_whole_tracks(tmp_path, monkeypatch):
    names = list(gtsrb_module.FILES)
    with zipfile.ZipFile(tmp_path / names[0], "w") as archive:
        for label in (0, 42):
            for track in range(12):
                for frame in range(3):  # every image of a track has the same grey
                    member = f"GTSRB/Final_Training/Images/{label:05}/{track:05}_{frame:05}.ppm"
                    archive.writestr(member, ppm(label * 4 + track))
            archive.writestr(f"GTSRB/Final_Training/Images/{label:05}/GT-{label:05}.csv", "Filename;Width\n")
    table = io.StringIO()
    rows = csv.writer(table, delimiter=";")
    rows.writerow(["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"])
    with zipfile.ZipFile(tmp_path / names[1], "w") as archive:
        for i in range(5):
            archive.writestr(f"GTSRB/Final_Test/Images/{i:05}.ppm", ppm(200 + i))
            rows.writerow([f"{i:05}.ppm", 30, 20, 0, 0, 1, 1, i + 1])
    with zipfile.ZipFile(tmp_path / names[2], "w") as archive:
        archive.writestr("GT-final_test.csv", table.getvalue())
    monkeypatch.setattr(gtsrb_module, "FILES", {name: digest((tmp_path / name).read_bytes()) for name in names})
    data = gtsrb(str(tmp_path), size=[8, 6])
    assert data.input_shape == (3, 8, 6)
    assert (len(data.train.labels), len(data.validation.labels)) == (66, 6)
    seen = [{(int(y), int(x[0, 0, 0])) for x, y in zip(one.images, one.labels, strict=True)}
            for one in (data.train, data.validation)]  # fmt: skip
    assert not seen[0] & seen[1]
    assert {label for label, _ in seen[1]} == {0, 42}
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5]
    assert data.test.images[:, 0, 0, 0].tolist() == [200, 201, 202, 203, 204]


# -- one's own folder -------------------------------------------------------------------------------------------------


def picture(path, value, size=(10, 14), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((*size, 3), value, np.uint8) if mode == "RGB" else np.full(size, value, np.uint8)
    Image.fromarray(array).save(path)


def fill(root, counts, first=0, endings=("png", "jpg", "bmp")):
    value = first
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i}.{endings[i % len(endings)]}", value % 256, (9 + i % 4, 12))
            value += 1


def test_a_folder_of_classes_is_split(tmp_path):
    root = tmp_path / "pets"
    fill(root, {"cat": 20, "dog": 40}, endings=("png",))
    (root / "cat" / "notes.txt").write_text("no image")
    data = folder(str(root), size=6, validation=0.25, test=0.2)
    assert (data.name, data.classes, data.num_classes, data.input_shape) == ("pets", ("cat", "dog"), 2, (3, 6, 6))
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [36, 12, 12]
    assert torch.bincount(data.test.labels).tolist() == [4, 8]
    assert disjoint(data)
    assert torch.equal(folder(str(root), size=6, validation=0.25, test=0.2).test.images, data.test.images)
    # The label is the folder's: values below 20 are cats.
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.images[:, 0, 0, 0] >= 20, split.labels == 1)


def test_folders_of_splits_are_kept(tmp_path):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 2, "b": 2}, 100)
    fill(tmp_path / "test", {"b": 3}, 200)
    data = folder(str(tmp_path), size=[4, 5], channels=1, name="mine")
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [10, 4, 3]
    assert data.test.labels.tolist() == [1, 1, 1]
    assert data.input_shape == (1, 4, 5)
    assert data.name == "mine"
    picture(tmp_path / "test" / "c" / "0.png", 1)
    with pytest.raises(DataError, match=r"has classes that .* has not: c"):
        folder(str(tmp_path))


def test_an_image_is_scaled_to_cover_and_cut_in_the_middle(tmp_path):
    array = np.zeros((4, 12, 3), np.uint8)
    array[:, 4:8] = 250  # the middle third
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", (4, 4), 3) == 250).all()
    assert read_image(tmp_path / "a.png", (2, 2), 1).shape == (1, 2, 2)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", (8, 8), 1)[0], grey)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", (8, 8), 3), np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "data.size"),
        ({"size": "big"}, "data.size"),
        ({"channels": 2}, "data.channels must be 1"),
        ({"validation": 0}, "data.validation must be a share"),
        ({"test": 1.0}, "data.test must be a share"),
        ({"test": 0.01}, "is 0; give another share, or a folder test"),
    ],
)
def test_bad_options_of_a_folder_are_named(tmp_path, options, message):
    fill(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(DataError, match=message):
        folder(str(tmp_path), **options)


def test_mistakes_with_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"needs data.root=FOLDER"):
        folder()
    with pytest.raises(DataError, match="is no folder"):
        folder(str(tmp_path / "nothing"))
    fill(tmp_path, {"a": 3})
    with pytest.raises(DataError, match="at least two; it has 1"):
        folder(str(tmp_path))
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no image of b"):
        folder(str(tmp_path))
    (tmp_path / "b" / "1.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"1\.png is no image that can be read"):
        folder(str(tmp_path))
    (tmp_path / "other" / "test" / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="has a folder test but no folder train"):
        folder(str(tmp_path / "other"))


# -- one's own arrays and data sets -----------------------------------------------------------------------------------


def images_and_labels(count, shape, classes=3):
    return RNG.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % classes


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (3, 8, 9), (8, 9, 1)])
def test_arrays(tmp_path, shape):
    (x, y), (more, labels) = images_and_labels(50, shape), images_and_labels(10, shape)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y[:, None], x_test=more, y_test=labels)
    data = arrays(str(tmp_path / "mine.npz"))
    assert (data.name, data.num_classes, len(data.validation.labels), len(data.train.labels)) == ("mine", 3, 5, 45)
    channels = 1 if len(shape) == 2 else 3 if 3 in shape else 1
    assert data.input_shape == (channels, 8, 9)
    expected = more[:, None] if len(shape) == 2 else more if shape[0] == 3 else more.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.test.images, expected)
    np.testing.assert_array_equal(data.test.labels, labels)


def test_arrays_of_all_splits_in_one(tmp_path):
    x, y = images_and_labels(50, (3, 8, 3))
    np.savez(tmp_path / "all.npz", images=x, labels=y)
    with pytest.raises(DataError, match=r"say where its channels stand, data.layout=nchw or nhwc"):
        arrays(str(tmp_path / "all.npz"))
    data = arrays(str(tmp_path / "all.npz"), layout="nhwc", name="other")
    assert data.input_shape == (3, 3, 8)
    assert [len(one.labels) for one in (data.train, data.validation, data.test)] == [36, 4, 10]
    assert disjoint(data)


def test_images_are_normalized_as_a_pretrained_network_wants_them(tmp_path):
    x, y = images_and_labels(12, (3, 6, 6))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for number, label in enumerate(y):
        (tmp_path / "folder" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[number].transpose(1, 2, 0)).save(tmp_path / "folder" / f"class{label}" / f"{number}.png")
    given = {"validation": 0.25, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125]}
    mean, std = (np.array(given[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
    sets = [
        arrays(str(tmp_path / "a.npz"), **given),
        folder(str(tmp_path / "folder"), size=6, test=0.25, **given),
        folder(str(tmp_path / "folder"), size=6, resize=6, test=0.25, in_memory=False, num_workers=0, **given),
    ]
    for data in sets:
        for images, _ in data.batches("test", 4):
            pixels = images.numpy() * std + mean
            near = [min(abs(255 * one - other).max() for other in x) for one in pixels]
            assert max(near) < 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5]}, "go together"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "data.mean must be 1 numbers"),
        ({"mean": [0.5], "std": [0.0]}, "data.std must be 1 numbers above 0"),
        ({"mean": [float("nan")], "std": [1.0]}, "data.mean must be"),
    ],
)
def test_mistakes_with_statistics_are_named(tmp_path, given, message):
    x, y = images_and_labels(12, (8, 8))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=message):
        arrays(str(tmp_path / "a.npz"), validation=0.25, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((4, 8, 8), np.float32)}, "must be uint8"),
        ({"x_train": np.zeros((4, 8, 8, 4), np.uint8)}, "where its channels stand"),
        ({"y_train": np.zeros(4)}, "whole numbers from 0 on"),
        ({"y_train": np.array([-1, 0, 1, 2])}, "whole numbers from 0 on"),
        ({"y_train": None}, "only one of x_train and y_train"),
        ({"x_train": None, "y_train": None}, "has no x_train and y_train; it has x_test, y_test"),
        ({"x_test": np.zeros((4, 9, 8), np.uint8)}, r"training are \(1, 8, 8\), others \(1, 9, 8\)"),
        ({"y_train": np.zeros(3, np.int64)}, "labels"),
    ],
)
def test_mistakes_with_arrays_are_named(tmp_path, changes, message):
    x, y = images_and_labels(4, (8, 8))
    given = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | changes
    np.savez(tmp_path / "a.npz", **{name: value for name, value in given.items() if value is not None})
    with pytest.raises((DataError, ValueError), match=message):
        arrays(str(tmp_path / "a.npz"), validation=0.5)


def test_files_that_are_no_arrays_are_named(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.file=FILE\.npz"):
        arrays()
    with pytest.raises(DataError, match=r"no \.npz file that can be read"):
        arrays(str(tmp_path / "nothing.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds one array"):
        arrays(str(tmp_path / "one.npy"))
    with pytest.raises(DataError, match="layout"):
        arrays(str(tmp_path / "one.npy"), layout="hwc")


class Pairs(torch.utils.data.Dataset):
    """Items of a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_torch_data_sets():
    x, y = images_and_labels(50, (6, 7, 3))
    forms = {
        "array": lambda image: image,
        "picture": Image.fromarray,
        "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
        "floats": lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255,
    }
    found = []
    for form in forms.values():
        train = Pairs([(form(image), int(label)) for image, label in zip(x, y, strict=True)])
        data = datasets(train, test=Pairs(train.items[:5]))
        assert (data.name, data.num_classes, data.input_shape) == ("Pairs", 3, (3, 6, 7))
        np.testing.assert_array_equal(data.test.images, x[:5].transpose(0, 3, 1, 2))
        found.append(data.train.images)
    assert all(torch.equal(found[0], one) for one in found)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([1], "item 0 of data.train is no pair"),
        ([(np.zeros((4, 4), np.uint8), 0), (np.zeros((4, 5), np.uint8), 0)], r"item 1 of data.train is \(1, 4, 5\)"),
        ([(np.full((4, 4), -1.0), 0)], "floats outside 0 .. 1"),
        ([(np.zeros((4, 4), np.int64), 0)], "must be uint8"),
        ([(np.zeros((4, 4), np.uint8), 0.5)], "label of item 0 of data.train is 0.5"),
        ([(np.zeros((4, 4), np.uint8), "cat")], "label of item 0 of data.train is 'cat'"),
        ([(np.zeros((4, 4), np.uint8), None)], "label of item 0 of data.train is None"),
        ([("a.png", 0)], "image of item 0 of data.train is no image, array or tensor, but a str"),
        ([], "holds no item"),
    ],
)
def test_mistakes_with_data_sets_are_named(items, message):
    with pytest.raises(DataError, match=message):
        datasets(Pairs(items))
    with pytest.raises(DataError, match="no data set with a length"):
        datasets(iter(items))
