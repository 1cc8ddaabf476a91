"""From how many pairs of planes on products of levels take less time than counts of bits: built in, or measured here.

A layer with P planes of weights and Q of inputs counts the bits of P times Q pairs of planes, or multiplies levels
whole, which takes the same time whatever P and Q. Where the two meet depends on the CPU and on how the layer looks.
`python -m bnn_kernels tune` measures both on the machine at hand and writes a file that every later process reads.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn_kernels.compile.cache import cache_root
from bnn_kernels.compile.isa import cpu_features, isa
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps

# A path, "built-in", or empty for the file that `tune` writes, if there is one.
VARIABLE = "BNN_KERNELS_COSTS"
BUILT_IN = "built-in"
VERSION = 1

# How layers look: a linear layer (its batch is not known here, so it is taken as one image); a large one, whose weights
# as bytes would not stay in the cache, and bits are the fewest to read; convolutions whose rows of a filter have so few
# bits that most of a word is empty; and those of up to 32, up to 64 and more channels.
FEW = "few bits"
KINDS = ("linear", "large linear", FEW, "32 channels", "64 channels", "more channels")
LARGE_WEIGHTS = 4 << 20
FEW_BITS = 24


def kind_of(filters: Filters, maps: Maps) -> str:
    """Return which of `KINDS` a layer is."""
    if maps.out == (1, 1):
        return "large linear" if filters.shape[0] * filters.products > LARGE_WEIGHTS else "linear"
    if filters.shape[2] > 1 and filters.shape[3] * filters.channels <= FEW_BITS:
        return "few bits"
    if filters.channels <= 32:
        return "32 channels"
    return "64 channels" if filters.channels <= 64 else "more channels"


# By path and product, for each of KINDS. AVX-512 with VNNI is what `tune` says on an Intel Xeon (Emerald Rapids), see
# results/costs_avx512.json; an AMD EPYC (Zen 4) differs, see results/costs_zen4.json. AVX2 with VNNI was measured on
# another Xeon, with one thread, best of many calls, against lookups or popcounts, means over weights and inputs of so
# many pairs: products ran so many times as fast. Other programs ran at the time, so the second digit is rough.
#
#   pairs:                         2      3      4      6      8
#   3x3, 64 channels, 14x14      0.9    1.4    1.3    2.0    2.3
#   3x3 and 1x1, 256, 14x14      0.6    1.0    1.0    1.7    1.8
#   3x3, 4 and 8 channels        1.6    2.7    2.5    3.1    4.3
#   linear 1024, batch 32        0.4    0.5    0.7    1.0    1.3
#   linear 1024, batch 1         0.5    0.6    0.6    0.7    0.8
#
# AVX2 without VNNI is what `tune` says on an AMD EPYC (Zen 1), see results/costs.json. This core begins a vpmaddubsw of
# 32 products, or a vpmaddwd of 16, every second cycle and an FMA of 8 lanes every cycle: twice FP32, or once, is the
# bound.
_FEWEST = {
    ("avx512", "vnni"): (6, 4, 1, 2, 2, 3),
    ("avx512", "shorts"): (8, 8, 4, 4, 4, 4),
    ("avx2", "vnni"): (8, 8, 2, 6, 6, 6),
    ("avx2", "pairs"): (8, 8, 2, 2, 6, 6),
    ("avx2", "shorts"): (8, 8, 6, 6, 6, 6),
    ("neon", "usdot"): (8, 8, 2, 3, 3, 3),
    ("neon", "sdot"): (8, 8, 2, 3, 3, 3),
}
_FEWEST_ON = {("znver4", "avx512", "vnni"): (6, 8, 2, 2, 4, 6)}
# NEON and generic code are guesses: nobody has measured them. On NEON a pair of planes takes three instructions for 128
# products (eor, cnt, uadalp), bytes one for 16 (sdot), or four (smull and others).
_GUESS = (12, 12, 12, 12, 12, 12)


# Of each kind's times: pairs of planes, and median microseconds of a call both ways.
COLUMNS = ("pairs", "counts_us", "products_us")


@dataclass(frozen=True)
class Costs:
    """Times of layers of each kind on one CPU, as `tune` writes them.

    cpu, isa: where, see `bnn_kernels.cpu_features`. product: how levels were multiplied. layers: for each of `KINDS`
    {"pairs": [...], "counts_us": [...], "products_us": [...]}, median microseconds of a call by pairs of planes.
    """

    cpu: str
    isa: str
    product: str
    layers: dict[str, dict[str, list[float]]]

    def fewest(self, kind: str) -> int:
        """Return from how many pairs on products were faster, one more than were tried if they never were."""
        times = self.layers[kind]
        rows = sorted(zip(*(times[key] for key in COLUMNS), strict=True), reverse=True)
        fewest = int(rows[0][0]) + 1
        for pairs, counts, products in rows:
            if products > counts:
                break
            fewest = int(pairs)
        return fewest

    def json(self) -> str:
        """Return the text of a file."""
        content = {"bnn_kernels_costs": VERSION, "cpu": self.cpu, "isa": self.isa, "product": self.product}
        return json.dumps(content | {"layers": self.layers}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, name: object) -> "Costs":
        """Return what a file says; ValueError that names the file if it says something else."""
        try:
            found: Any = json.loads(text)
            if found["bnn_kernels_costs"] != VERSION:
                raise ValueError(f"version {found['bnn_kernels_costs']!r} is unknown")
            costs = cls(str(found["cpu"]), str(found["isa"]), str(found["product"]), found["layers"])
            for kind in KINDS:
                times = costs.layers[kind]
                columns = [[float(number) for number in times[key]] for key in COLUMNS]
                if len({len(column) for column in columns}) != 1 or not all(0 < v < 1e9 for c in columns for v in c):
                    raise ValueError(f"the times of {kind!r} are no columns of as many positive numbers")
                costs.fewest(kind)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{name} is no file of costs: {error or type(error).__name__}. Remove it, or measure anew: "
                "python -m bnn_kernels tune"
            ) from error
        return costs


def default_file() -> Path | None:
    """Return where `tune` writes the costs of this CPU and path, None if there is no folder of the user's."""
    root = cache_root()
    return None if root is None else root / f"costs-{cpu_features()['cpu']}-{isa()}.json"


@functools.cache
def measured() -> Costs | None:
    """Return the costs measured on this CPU, None for those that are built in; read once in a process.

    OSError if the file that BNN_KERNELS_COSTS names cannot be read, ValueError if it is damaged or of another CPU.
    """
    named = os.environ.get(VARIABLE, "")
    if named == BUILT_IN:
        return None
    file = Path(named) if named else default_file()
    if file is None or (not named and not file.is_file()):
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(f"{VARIABLE} names {file}, which cannot be read: {error.strerror or error}") from error
    costs = Costs.parse(text, file)
    here = (str(cpu_features()["cpu"]), isa())
    if (costs.cpu, costs.isa) != here:
        raise ValueError(
            f"{file} was measured on {costs.cpu} with {costs.isa}, this is {here[0]} with {here[1]}. "
            "Measure here: python -m bnn_kernels tune"
        )
    return costs


def fewest_pairs(filters: Filters, maps: Maps, product: str) -> tuple[int, bool]:
    """Return (from how many pairs of planes on a layer takes products, whether that was measured on this machine)."""
    kind, costs = kind_of(filters, maps), measured()
    if costs is not None and costs.product == product:
        return costs.fewest(kind), True
    path = (isa(), product)
    table = _FEWEST_ON.get((str(cpu_features()["cpu"]), *path)) or _FEWEST.get(path, _GUESS)
    return table[KINDS.index(kind)], False
