"""Measuring, on the machine at hand, from how many pairs of planes on products of levels beat counts of bits.

`ops.packed_layers.costs` says what is chosen by these times, and reads the file that `write` makes.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.level_bytes import LevelBytes, bytes_of_codes, new_level_bytes
from bnn_kernels.bits.tensor import BitTensor, pack_levels, unpack_codes
from bnn_kernels.compile.isa import cpu_features, isa
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.integer_conv.form import form_for
from bnn_kernels.ops.packed_layers import choice
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d
from bnn_kernels.ops.packed_layers.costs import KINDS, Costs
from bnn_kernels.ops.packed_layers.linear import PackedLinear
from bnn_kernels.runtime import threads

# Channels of the 3x3 layers, 14x14, that stand for each kind; features of the linear one.
SIZES = {
    "linear": 1024,
    "large linear": 4096,
    "few bits": 8,
    "32 channels": 32,
    "64 channels": 64,
    "more channels": 256,
}
MAP = 14
# Planes of weights and of inputs, so that pairs are 1 (of few bits alone), 2, 3, 4, 6, 8, 9, 12 and 16.
PLANES = ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))
BLOCK_SECONDS = 0.01


class Trial(NamedTuple):
    """One layer timed both ways: medians in microseconds."""

    kind: str
    pairs: int
    counts_us: float
    products_us: float


def _multipliers(planes: int) -> tuple[int, ...]:
    """Return those of levels in two's complement."""
    return (*(1 << p for p in range(planes - 1)), -(1 << (planes - 1))) if planes > 1 else (1,)


def _levels(generator: np.random.Generator, shape: tuple[int, ...], planes: int) -> np.ndarray:
    multipliers = _multipliers(planes)
    low = sum(min(m, 0) for m in multipliers)
    return generator.integers(low, sum(max(m, 0) for m in multipliers) + 1, shape)


def _as_bytes(bits: BitTensor) -> LevelBytes:
    """Return the same levels as bytes."""
    made = new_level_bytes(bits.shape, bits.signed, bits.multipliers)
    made.u[...] = bytes_of_codes(bits.multipliers, bits.signed)[unpack_codes(bits)]
    return made


def _layer(kind: str, levels: np.ndarray, planes: int) -> PackedConv2d | PackedLinear:
    if kind.endswith("linear"):
        return PackedLinear.from_levels(levels, _multipliers(planes), False)
    return PackedConv2d.from_levels(levels, _multipliers(planes), False, padding=1)


def _in_turn(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Return the median microseconds of each call, timed in turn in blocks."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times)) < 5:
        for call, found in zip(calls, times, strict=True):
            block = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < block:
                call()
                found.append(time.perf_counter() - start)
    return [round(float(np.median(found)) * 1e6, 2) for found in times]


def _both_ways(kind: str, planes: tuple[int, int], generator: np.random.Generator) -> list[Callable[[], Any]] | None:
    """Return calls of one layer that counts bits and that multiplies levels, None if this CPU cannot multiply them."""
    weights, inputs = planes
    size = SIZES[kind]
    linear = kind.endswith("linear")
    extent = (1, 1) if linear else (MAP, MAP)
    filters = _levels(generator, (size, size) if linear else (max(size, 32), size, 3, 3), weights)
    bits = pack_levels(
        _levels(generator, (1, size) if linear else (1, size, *extent), inputs), _multipliers(inputs), False
    )
    seen = Filters((*filters.shape, 1, 1)[:4], _multipliers(weights), False, 1)
    maps = Maps(extent, extent, False, _multipliers(inputs))
    with choice.force("products"):
        if not choice.choose(seen, maps).multiplies:
            return None
        products, levels = _layer(kind, filters, weights), _as_bytes(bits)
        found = products(levels)
    with choice.force("counts"):
        counts = _layer(kind, filters, weights)
        expected = counts(bits)
    if not np.array_equal(found, expected):
        raise RuntimeError(f"products and counts of {planes} planes differ for {kind}, so there is nothing to time")
    return [lambda: counts(bits), lambda: products(levels)]


def trials(seconds: float = 0.1) -> Iterator[Trial]:
    """Yield the times of every kind of layer with every number of pairs, with one thread, `seconds` for each.

    RuntimeError if both ways do not give the same sums.
    """
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    generator = np.random.default_rng(0)
    try:
        for kind in KINDS:
            for planes in PLANES:
                calls = _both_ways(kind, planes, generator)
                if calls is not None:
                    yield Trial(kind, planes[0] * planes[1], *_in_turn(calls, seconds))
    finally:
        threads.set_num_threads(before)


def costs_of(found: list[Trial]) -> Costs:
    """Return what the trials of all kinds say."""
    layers: dict[str, dict[str, list[float]]] = {}
    for trial in sorted(found, key=lambda trial: trial.pairs):
        times = layers.setdefault(trial.kind, {"pairs": [], "counts_us": [], "products_us": []})
        times["pairs"].append(trial.pairs)
        times["counts_us"].append(trial.counts_us)
        times["products_us"].append(trial.products_us)
    return Costs(str(cpu_features()["cpu"]), isa(), product(), layers)


def product() -> str:
    """Return how levels of a few bits are multiplied on this CPU."""
    planes = _multipliers(2)
    form = form_for(Filters((32, 64, 3, 3), planes, False, 1), Maps((MAP, MAP), (MAP, MAP), False, planes))
    assert form is not None
    return form.product


def check_place(file: Path) -> None:
    """OSError, before minutes of timing, for a file that `write` could not write."""
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file")
    file.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=file.parent).close()


def write(costs: Costs, file: Path) -> None:
    """Write a file of costs, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(costs.json(), encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
