"""Data sets of Hugging Face: that they train as folders of the same images do, and what each mistake is called."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bnn.data import DataError, InTurn, RandomCropFlip, RandomResizedCrop, RowSplit, huggingface, imagenet

hf = pytest.importorskip("datasets", reason="the extra huggingface is not installed")

RNG = np.random.default_rng(0)
NAMES = ["n01440764", "n01443537"]
FEATURES = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["tench", "goldfish"])})
OPTIONS = {"size": 16, "resize": 20, "num_workers": 0}


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory):
    """Tables that the library makes of parquet files go to a folder of the tests; no bars."""
    patch = pytest.MonkeyPatch()
    patch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    hf.disable_progress_bars()
    yield
    hf.enable_progress_bars()
    patch.undo()


def photograph(height, width, suffix):
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(file, suffix)
    return file.getvalue()


@pytest.fixture(scope="module")
def photographs():
    """{split: [(class, name of the file, its bytes)]}; a few names are so that orders of text and of numbers differ."""
    found = {"train": [], "validation": []}
    for label in range(2):
        for i in range(12):
            content = photograph(30 + 3 * i, 44 - 2 * label, "JPEG")
            found["train"].append((label, f"{NAMES[label]}_{i}.JPEG", content))
        for i in range(3):
            found["validation"].append((label, f"ILSVRC2012_val_{i + 3 * label:08}.JPEG", photograph(24, 36, "PNG")))
    return found


@pytest.fixture(scope="module")
def folders(photographs, tmp_path_factory):
    """The images in folders of their classes."""
    top = tmp_path_factory.mktemp("folders")
    for split, folder in (("train", "train"), ("validation", "val")):
        for label, name, content in photographs[split]:
            (top / folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
            (top / folder / NAMES[label] / name).write_bytes(content)
    return str(top)


def table(entries, features=FEATURES):
    """Rows as the hub has them: shuffled, with the class in the files' names."""
    order = np.random.default_rng(1).permutation(len(entries))
    rows = [entries[at] for at in order]
    images = [{"bytes": content, "path": name.replace(".", f"_{NAMES[label]}.")} for label, name, content in rows]
    return hf.Dataset.from_dict({"image": images, "label": [label for label, *_ in rows]}, features=features)


@pytest.fixture(scope="module")
def tables(photographs):
    """The images as the hub's ImageNet has them, with a test split whose labels are hidden."""
    hidden = [(-1, name, content) for _, name, content in photographs["validation"]]
    return hf.DatasetDict(
        {split: table(entries) for split, entries in photographs.items()}
        | {"test": hf.Dataset.from_dict({"image": [one[2] for one in hidden], "label": [-1] * 6}, features=FEATURES)}
    )


@pytest.fixture(scope="module", params=["saved", "parquet"])
def root(request, tables, tmp_path_factory):
    """A folder that save_to_disk wrote, or one of parquet files."""
    top = tmp_path_factory.mktemp(request.param)
    if request.param == "saved":
        tables.save_to_disk(str(top))
    else:
        for split, rows in tables.items():
            rows.to_parquet(str(top / f"{split}-00000-of-00001.parquet"))
    return str(top)


def read(root, **options):
    return huggingface(root=str(root), **{"validation": 0.2, "test": "validation"} | OPTIONS | options)


def batches(found, split, **options):
    loader = found.batches(split, 5, **options)
    loader.set_epoch(3)
    return [value for pair in loader for value in pair]


@pytest.mark.parametrize(
    "augment",
    [None, RandomResizedCrop(), InTurn([RandomResizedCrop(), RandomCropFlip(2)])],
    ids=["plain", "crop", "two"],
)
def test_it_trains_as_folders_of_the_same_images_do(root, folders, augment):
    ours, theirs = read(root), imagenet(folders, validation=0.2, **OPTIONS)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(ours, split).labels, getattr(theirs, split).labels)
        for number, file in enumerate(getattr(theirs, split).files):
            pixels = np.asarray(getattr(ours, split).opened(number, 3))
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(file).convert("RGB")))
        options = {"shuffle": split == "train", "seed": 7, "augment": augment if split == "train" else None}
        given = theirs.mean.tolist(), theirs.std.tolist()
        normalized = read(root, mean=given[0], std=given[1])
        for one, other in zip(batches(normalized, split, **options), batches(theirs, split, **options), strict=True):
            assert torch.equal(one, other)
    assert (ours.num_classes, ours.classes, ours.input_shape) == (2, ("tench", "goldfish"), (3, 16, 16))


def test_statistics_are_those_of_the_training_images(root):
    found = read(root)
    pixels = torch.from_numpy(found.pictures(range(found.count("train")))).double() / 255
    torch.testing.assert_close(found.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(found.std, pixels.std((0, 2, 3), correction=0).float())


def test_workers_change_nothing(root):
    options = {"shuffle": True, "seed": 1, "augment": RandomResizedCrop()}
    alone = batches(read(root), "train", **options)
    for one, other in zip(alone, batches(read(root, num_workers=2), "train", **options), strict=True):
        assert torch.equal(one, other)


def test_rows_without_names_of_files_stay_in_their_order(tmp_path, photographs):
    """A column of bytes alone, labels without names of classes, and a test that is a share."""
    rows = photographs["train"]
    shuffled = [rows[at] for at in RNG.permutation(len(rows))]
    plain = {"picture": [one[2] for one in shuffled], "kind": [one[0] for one in shuffled]}
    hf.Dataset.from_dict(plain).select(range(20)).save_to_disk(str(tmp_path / "mine"))
    found = read(tmp_path / "mine", image="picture", label="kind", test=0.2, channels=1)
    assert (found.name, found.num_classes, found.classes, found.input_shape) == ("mine", 2, (), (1, 16, 16))
    assert [found.count(split) for split in ("train", "validation", "test")] == [13, 3, 4]
    numbers = torch.cat([split.numbers for split in (found.train, found.validation, found.test)])
    assert numbers.sort().values.tolist() == list(range(20))
    for split in (found.train, found.test):
        for number, label in zip(split.numbers.tolist(), split.labels.tolist(), strict=True):
            assert shuffled[number][0] == label
    whole = read(tmp_path / "mine", image="picture", label="kind", test=0.2, channels=1)
    assert torch.equal(whole.train.numbers, found.train.numbers)
    assert len(batches(found, "train")) == 6


def test_images_that_lie_in_files_beside_the_table(tmp_path, photographs):
    label, name, content = photographs["train"][0]
    (tmp_path / name).write_bytes(content)
    split = RowSplit([{"image": {"bytes": None, "path": str(tmp_path / name)}}], "image", "here", torch.tensor([0]),
                     torch.tensor([label]))  # fmt: skip
    np.testing.assert_array_equal(split.opened(0, 3), Image.open(io.BytesIO(content)))


def test_hidden_labels_are_no_test(root):
    with pytest.raises(
        DataError, match=r"split test of .* has 6 labels that are not in 0 \.\. 1, such as -1; -1 is written"
    ):
        read(root, test="test")


MISTAKES = [
    ({"test": "tset"}, r"has no split tset, it has train, validation, test: give data\.test=NAME, or data\.test=0\.1"),
    ({"train": "training"}, r"has no split training, it has train, validation, test: give data\.train=NAME$"),
    ({"image": "img"}, r"split train of .* has no column img, it has image, label: give data\.image=NAME"),
    ({"label": "fine"}, r"has no column fine, it has image, label: give data\.label=NAME"),
    ({"image": "label"}, r"has no images in column label, but .*: give data\.image=image$"),
    ({"label": "image"}, r"has labels in column image that are no whole numbers, or lacks some: Image"),
    (
        {"validation": "validation"},
        r"splits must be different ones, got data\.train=train data\.validation=validation",
    ),
    ({"validation": 1.5}, r"data\.validation must be a share between 0 and 1, got 1\.5"),
    ({"size": [16, 16]}, r"data\.size must be a whole number of at least 1, got \[16, 16\]"),
    ({"mean": [0.5] * 3}, r"data\.mean and data\.std go together"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_a_mistaken_option_is_named(root, options, words):
    with pytest.raises(DataError, match=words):
        read(root, **options)


def test_an_empty_split_is_named(monkeypatch, tables, tmp_path):
    """In a folder of parquet files by the library, else here."""
    for split, count in (("train", 0), ("validation", 6)):
        tables[split].select(range(count)).to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(DataError, match=r"is no data set that can be read: .*train.* corresponds to no data"):
        read(tmp_path)
    monkeypatch.setattr(hf, "load_dataset", lambda *names, **options: without(tables, test=tables["test"].select([])))
    with pytest.raises(DataError, match=r"split test of owner/name is empty$"):
        huggingface("owner/name")


def without(tables, **others):
    return hf.DatasetDict(dict(tables) | others)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without(t, train=t["train"].select([])), "is no data set that can be read: a split of it is empty"),
        (
            lambda t: without(t, train=t["train"].filter(lambda row: row["label"] == 0)),
            "split train of .* has no image of 1 of its 2 classes, such as goldfish",
        ),
        (
            lambda t: without(t, validation=t["validation"].cast_column("label", hf.ClassLabel(names=["b", "a"]))),
            "split validation of .* has other classes than train",
        ),
        (
            lambda t: hf.DatasetDict(
                {key: t[key].cast_column("label", hf.Value("int64")) for key in ("train", "validation")}
                | {"validation": hf.Dataset.from_dict(
                    {"image": t["validation"][:2]["image"], "label": [0, 2]},
                    hf.Features({"image": hf.Image(), "label": hf.Value("int64")}))}
            ),
            r"split validation of .* has a label 2, those of train are 0 \.\. 1",
        ),
    ],
    ids=["empty", "lacking", "other", "more"],
)  # fmt: skip
def test_a_data_set_that_cannot_be_used_is_named(tables, tmp_path, change, words):
    change(tables).save_to_disk(str(tmp_path / "made"))
    with pytest.raises(DataError, match=words):
        read(tmp_path / "made")


@pytest.mark.parametrize(
    ("value", "words"), [(b"no image", "is no image that can be read"), (None, "is empty, no image")]
)
def test_a_row_that_holds_no_image_is_named(tmp_path, photographs, value, words):
    content = [one[2] for one in photographs["train"]]
    content[5] = value
    labels = [one[0] for one in photographs["train"]]
    hf.Dataset.from_dict({"image": content, "label": labels}, features=FEATURES).save_to_disk(str(tmp_path))
    found = read(tmp_path, test=0.1)
    with pytest.raises(DataError, match=f"row 5 of split train of .*, column image, {words}"):
        for split in ("train", "validation", "test"):
            batches(found, split)


def test_where_it_is_from_can_be_wrong(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.hub=OWNER/NAME, .* or data\.root=FOLDER"):
        huggingface()
    with pytest.raises(DataError, match=r"data\.root=.*absent is no folder; give one that save_to_disk wrote"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"is no data set that can be read: .*doesn't contain any data files"):
        read(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="is no data set that can be read"):
        read(tmp_path)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    words = r"ILSVRC/imagenet-1k could not be loaded from huggingface\.co: .*`hf auth login`.*Or give data\.root=FOLDER"
    with pytest.raises(DataError, match=words):
        huggingface("ILSVRC/imagenet-1k")


def test_what_is_asked_of_the_hub(monkeypatch, tables):
    """By a stand-in: the hub's own answer cannot be had without an account."""
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return tables

    monkeypatch.setattr(hf, "load_dataset", load_dataset)
    found = huggingface("ILSVRC/imagenet-1k", subset="default", revision="v1", test="validation", **OPTIONS)
    assert asked == [(("ILSVRC/imagenet-1k", "default"), {"revision": "v1"})]
    assert found.name == "imagenet-1k"
    assert found.count("test") == 6


def test_without_the_library_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'bitplanes\[huggingface\]'"):
        read(tmp_path)
