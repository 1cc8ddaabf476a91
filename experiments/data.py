"""Fetch a data set, check it, and show what it holds: python -m experiments.data data=NAME (or name=NAME).

Prints the splits, the shape and the statistics of the images and how many there are of each class, and writes a
contact sheet: some training images of each class, or curves of sounds. Of a text it prints the splits, the characters
and a passage.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from experiments import cli
from experiments.config_values import whole_number
from experiments.run_parts import NOUNS
from experiments.targets import build

# Rows of the table; more classes are summed up in one.
MOST_CLASSES = 50
# Tokens of a text that are shown.
PASSAGE = 400


def numbers(values: Sequence[float]) -> str:
    """Return numbers of channels as text."""
    return ", ".join(f"{value:.4f}" for value in values)


def task(config: DictConfig) -> None:
    """Load the data set that the config names, print what it holds and draw the contact sheet."""
    whole_number(config, "columns", 1)
    data = build(config, "data")
    if data.kind == "text":
        show_text(data)
    else:
        show_classes(data, config)


def show_text(data: Any) -> None:
    """Print what a text holds, and a passage from the beginning of its training split."""
    print(f"{data.name}: {data.num_classes} different {data.unit}s, {data.context} of them at once")
    if data.vocabulary:
        print(f"characters: {''.join(data.vocabulary)!r}")
    table = Table(title="text")
    for column in ("split", f"{data.unit}s", "windows", "bits by frequency alone"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in (("train", "training"), ("validation", "validation"), ("test", "test")):
        tokens = getattr(data, name).numpy()
        share = np.bincount(tokens, minlength=data.num_classes) / len(tokens)
        entropy = -float(np.sum(share[share > 0] * np.log2(share[share > 0])))
        table.add_row(split, f"{len(tokens):,}", f"{data.count(name):,}", f"{entropy:.3f}")
    cli.console().print(table)
    print(f"how it begins:\n{data.decode(data.train[:PASSAGE])}")


def show_classes(data: Any, config: DictConfig) -> None:
    """Print what a data set of images or sounds holds, and draw its contact sheet."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    noun = NOUNS[data.kind]
    shape = " x ".join(map(str, data.input_shape))
    axes, unit = "(channels, rows, columns)", "1 is white"
    if data.kind == "audio":
        axes, unit = f"(channels, samples), {data.rate:,} samples a second", "1 is full scale"
    print(f"{data.name}: {data.num_classes} classes, {noun} {shape} {axes}")
    mean, deviation = numbers(data.mean.tolist()), numbers(data.std.tolist())
    print(f"training {noun}, where {unit}: mean {mean}, deviation {deviation}")
    counts = {name: np.bincount(split.labels, minlength=data.num_classes) for name, split in splits.items()}
    table = Table(title=noun)
    for column in ("class", *splits):
        table.add_column(column, justify="left" if column == "class" else "right")
    shown = data.num_classes if data.num_classes <= MOST_CLASSES else 0
    for label in range(shown):
        name = data.classes[label] if data.classes else str(label)
        table.add_row(name, *(f"{count[label]:,}" for count in counts.values()), end_section=label == shown - 1)
    if not shown:
        spread = (f"{count.min():,} .. {count.max():,}" for count in counts.values())
        table.add_row(f"each of {data.num_classes}", *spread, end_section=True)
    table.add_row("all", *(f"{count.sum():,}" for count in counts.values()))
    cli.console().print(table)
    empty = [name for name, count in counts.items() if count.min() == 0]
    if empty:
        print(f"note: some class has no {noun[:-1]} for {' and '.join(empty)}")
    if config.sheet is not None:
        from paper_figures.contact_sheet import curves, draw
        from paper_figures.save import save

        path = Path(str(config.sheet).replace("NAME", data.name))
        labels = data.train.labels.numpy()
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == one)[: config.columns] for one in np.unique(labels)]))
        labels = labels[chosen]
        inputs = data.pictures(chosen) if hasattr(data, "pictures") else data.train.inputs[chosen].numpy()
        images, white = (curves(inputs), 255) if data.kind == "audio" else (inputs, data.max_value)
        columns = min(config.columns, int(np.bincount(labels).max()))  # no empty ones where images are few
        save(draw(images, labels, white, data.classes, columns), path)
        print(f"written: {path}")


def main() -> None:
    """Entry point; name=NAME stands for data=NAME."""
    from bnn.data import DataError

    sys.argv[1:] = [f"data={word[5:]}" if word.startswith("name=") else word for word in sys.argv[1:]]
    cli.run(task, "data", expected=(DataError, OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
