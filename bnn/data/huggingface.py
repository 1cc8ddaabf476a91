"""Labelled images of a Hugging Face data set, on the hub or in a folder, read with the library `datasets`."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bnn.data.errors import DataError
from bnn.data.image_files import opened
from bnn.data.large_images import ImageFiles
from bnn.data.normalize import given_statistics
from bnn.data.splits import stratified_parts

if TYPE_CHECKING:
    from PIL import Image

# What the hub's ImageNet has added to the files' names: n01440764_1.JPEG is n01440764_1_n01440764.JPEG there.
_SYNSET = re.compile(r"_n\d{8}(?=\.\w+$)")


@dataclass(frozen=True)
class RowSplit:
    """Images of a table's rows.

    rows: rows[number][column] is the bytes of an image file, or {"bytes": these or None, "path": the file's name}.
    numbers: int64 (N,), of the rows that belong to the split, in its order. labels: int64 (N,). name: for messages.
    """

    rows: Any
    column: str
    name: str
    numbers: Tensor
    labels: Tensor

    def taken(self, index: Tensor) -> "RowSplit":
        """Return the images of some indices."""
        return RowSplit(self.rows, self.column, self.name, self.numbers[index], self.labels[index])

    def opened(self, index: int, channels: int) -> "Image.Image":
        """Return an image, see `image_files.opened`; DataError names a row that holds none."""
        number = int(self.numbers[index])
        value = self.rows[number][self.column]
        name = f"row {number} of {self.name}"
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        if content is not None:
            return opened(io.BytesIO(content), channels, name)
        if path is None:
            raise DataError(f"{name} is empty, no image")
        return opened(Path(path), channels)


def huggingface(
    hub: str | None = None,
    root: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    train: str = "train",
    validation: str | float = 0.1,
    test: str | float = "test",
    image: str = "image",
    label: str = "label",
    size: int = 224,
    resize: int | None = None,
    channels: int = 3,
    num_workers: int = 2,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageFiles:
    """Return the images of a Hugging Face data set, which stay files and are decoded for each batch by processes.

    hub: its name on huggingface.co, such as "ILSVRC/imagenet-1k"; it is downloaded once, into the cache of the library
    `datasets`. root: a folder to read instead: what `save_to_disk` wrote, or parquet files as the hub has them, named
    by their splits. subset: one of several data sets under one name. revision: a branch, tag or commit of the hub.
    train: the split to train on. validation, test: names of splits, or shares that are drawn of the training images as
    `folder` does. image, label: the columns with the images and with the numbers of their classes, from 0 on. The order
    is that of the classes and in each of the file names, as in folders of the same files, or of the rows where images
    have no file names. size, resize, channels, num_workers, mean, std: as for `folder` with in_memory=False. name: what
    results call the data, by default the last part of root or hub. DataError says what is missing or cannot be used.
    Source: Lhoest et al. 2021, "Datasets: A community library for natural language processing", arXiv:2109.02846.
    """
    parts, where = _loaded(hub, root, subset, revision)
    named = {"train": train} | {key: word for key, word in (("validation", validation), ("test", test))
                                if isinstance(word, str)}  # fmt: skip
    if len(set(named.values())) < len(named):
        raise DataError(f"the splits must be different ones, got {_assigned(named)}; a share such as 0.1 is drawn from "
                        "the training images")  # fmt: skip
    found = {key: _split(parts, word, key, image, label, where) for key, word in named.items()}
    rest, classes = found["train"]
    count = len(classes) or int(rest.labels.max()) + 1
    for key, (split, names) in found.items():
        if names != classes:
            raise DataError(f"split {named[key]} of {where} has other classes than {train}, or in another order")
        if int(split.labels.max()) >= count:
            most = int(split.labels.max())
            raise DataError(f"split {named[key]} of {where} has a label {most}, those of {train} are 0 .. {count - 1}")
    lacking = torch.nonzero(torch.bincount(rest.labels, minlength=count) == 0).flatten().tolist()
    if lacking:
        one = classes[lacking[0]] if classes else lacking[0]
        raise DataError(
            f"split {train} of {where} has no image of {len(lacking)} of its {count} classes, such as {one}"
        )
    if "test" in found:
        tested = found["test"][0]
    else:
        rest, tested = stratified_parts(rest, test, "data.test", "the name of a split")  # type: ignore[arg-type]
    if "validation" in found:
        validated = found["validation"][0]
    else:
        rest, validated = stratified_parts(rest, validation, "data.validation", "the name of a split")  # type: ignore[arg-type]
    scaled = round(size * 8 / 7) if resize is None and isinstance(size, int) else resize
    statistics = given_statistics(mean, std, channels)
    called = name or Path(where).expanduser().resolve().name
    return ImageFiles(called, rest, validated, tested, count, size, scaled, channels, num_workers, classes, statistics)


def _assigned(named: Mapping[str, str]) -> str:
    return " ".join(f"data.{key}={word}" for key, word in named.items())


def _loaded(
    hub: str | None, root: str | None, subset: str | None, revision: str | None
) -> tuple[Mapping[str, Any], str]:
    """Return {name of a split: its table}, and where they are from."""
    if not root and not hub:
        raise DataError("data=huggingface needs data.hub=OWNER/NAME, a data set of huggingface.co, or data.root=FOLDER")
    folder = Path(root).expanduser() if root else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"data.root={root} is no folder; give one that save_to_disk wrote or that has parquet files")
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise DataError("data sets of Hugging Face need more: pip install 'bitplanes[huggingface]'") from None
    try:
        if folder is None:
            tables = datasets.load_dataset(hub, subset, revision=revision)
        elif any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            tables = datasets.load_from_disk(str(folder))
        else:
            tables = datasets.load_dataset(str(folder), subset)
    except Exception as error:  # of datasets, huggingface_hub, pyarrow, httpx: all mean "not so"
        if folder is not None:
            # datasets 5.2 cannot read a split that it saved without rows.
            reason = "a split of it is empty" if isinstance(error, IndexError) else error
            raise DataError(f"data.root={root} is no data set that can be read: {reason}") from error
        raise DataError(
            f"{hub} could not be loaded from huggingface.co: {error}. Check name and network. If it is given only to "
            f"those who accept its terms, do so on https://huggingface.co/datasets/{hub} and log in with "
            "`hf auth login` or HF_TOKEN. Or give data.root=FOLDER with its files"
        ) from error
    return tables if isinstance(tables, Mapping) else {"train": tables}, root or str(hub)


def _split(
    parts: Mapping[str, Any], split: str, option: str, image: str, label: str, where: str
) -> tuple[RowSplit, tuple[str, ...]]:
    """Return a split, ordered by its labels, and the names of its classes, () if it has none."""
    if split not in parts:
        instead = "" if option == "train" else f", or data.{option}=0.1 for a share of the training images"
        raise DataError(f"{where} has no split {split}, it has {', '.join(parts)}: give data.{option}=NAME{instead}")
    table, name = parts[split], f"split {split} of {where}"
    for key, column in (("image", image), ("label", label)):
        if column not in table.column_names:
            known = ", ".join(table.column_names)
            raise DataError(f"{name} has no column {column}, it has {known}: give data.{key}=NAME")
    if len(table) == 0:
        raise DataError(f"{name} is empty")
    labels, classes = _labels(table, label, name)
    rows, files = _files(table, image, name)
    order = torch.from_numpy(np.lexsort((np.arange(len(table)) if files is None else files, labels)))
    return RowSplit(rows, image, f"{name}, column {image},", order, torch.from_numpy(labels)[order]), classes


def _labels(table: Any, column: str, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels, int64 (N,), and the names of their classes; DataError if they are none."""
    feature = table.features[column]
    classes = tuple(getattr(feature, "names", None) or ())
    labels = table.select_columns([column]).with_format("arrow")[:][column].to_numpy()
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{name} has labels in column {column} that are no whole numbers, or lacks some: {feature}. Give "
            "data.label=NAME, or number them by class_encode_column of the library datasets"
        )
    most = len(classes) - 1 if classes else int(labels.max())
    wrong = labels[(labels < 0) | (labels > most)]
    if len(wrong):
        hidden = "; -1 is written where labels are not public: take another split" if (wrong == -1).all() else ""
        range_ = f"in 0 .. {most}" if classes else "from 0 on"
        raise DataError(f"{name} has {len(wrong)} labels that are not {range_}, such as {wrong[0]}{hidden}")
    return labels.astype(np.int64), classes


def _files(table: Any, column: str, name: str) -> tuple[Any, np.ndarray | None]:
    """Return rows with images as files, and the files' names, (N,), if all have one; DataError if they are none."""
    import datasets

    feature = table.features[column]
    rows = table.select_columns([column])
    is_image = isinstance(feature, datasets.Image)
    if is_image:
        rows = rows.cast_column(column, datasets.Image(decode=False))  # as it stands in the table
    elif not (isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature)):
        if getattr(feature, "dtype", None) in ("binary", "large_binary"):
            return rows, None
        others = [one for one, kind in table.features.items() if isinstance(kind, datasets.Image)]
        instead = f": give data.image={' or '.join(others)}" if others else ""
        raise DataError(f"{name} has no images in column {column}, but {feature}{instead}")
    held = rows.with_format("arrow")[:][column]
    paths = held.flatten()[held.type.get_field_index("path")].to_pylist()
    if not all(paths):
        return rows, None
    return rows, np.array([_SYNSET.sub("", path.replace("\\", "/").rpartition("/")[2]) for path in paths])
