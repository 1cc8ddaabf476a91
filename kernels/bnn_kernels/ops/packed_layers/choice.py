"""Which kernels compute a layer's sums: the fastest of those that this CPU has and that hold its sums."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bnn_kernels.compile.isa import isa
from bnn_kernels.ops.binary_conv.level_lookup import LevelLookupPath
from bnn_kernels.ops.binary_conv.lookup import LookupPath
from bnn_kernels.ops.binary_conv.popcount import PopcountPath
from bnn_kernels.ops.conv_path import ConvPath
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.integer_conv.form import Form, form_for
from bnn_kernels.ops.integer_conv.products import ProductPath
from bnn_kernels.ops.weights import Weights

# From so many pairs of planes on, products of levels take less time than counts of every pair. Measured with one thread
# of an Intel Xeon that has VNNI for both widths, best of many calls, against popcounts (AVX-512) and lookups or
# popcounts (AVX2), means over weights and inputs of so many pairs: products ran so many times as fast. Other programs
# ran at the time, so the second digit is rough.
#
#   AVX-512, pairs:                2      3      4      6      8   | AVX2:   2      3      4      6      8
#   3x3, 64 channels, 14x14      1.0    1.3    1.5    1.9    2.5   |        0.9    1.4    1.3    2.0    2.3
#   3x3 and 1x1, 256, 14x14      0.7    1.0    1.2    1.7    2.2   |        0.6    1.0    1.0    1.7    1.8
#   3x3, 4 and 8 channels        1.6    2.4    2.6    2.9    4.3   |        1.6    2.7    2.5    3.1    4.3
#   linear 1024, batch 32        0.5    0.7    0.9    1.3    1.8   |        0.4    0.5    0.7    1.0    1.3
#   linear 1024, batch 1         0.6    0.6    0.7    0.8    0.9   |        0.5    0.6    0.6    0.7    0.8
#
# AVX2 without VNNI, on an AMD EPYC (Zen 1), 3x3, 256, 14x14, best of many calls: lookups take 1.41 ms for 2/2 and t/2,
# products 2.61 ms; from 3/3 on (nine pairs) products take 2.61 to 3.13 ms, 8/8 as 16-bit numbers 5.13 ms. This core
# begins a vpmaddubsw of 32 products, or a vpmaddwd of 16, every second cycle and an FMA of 8 lanes every cycle: twice
# FP32, or once, is the bound, and products are near it.
#
# NEON and generic code are guesses: nobody has measured them.
PAIRS_FOR_PRODUCTS = {"avx512": 4, "avx2": 6, "neon": 12, "generic": 12}
# A linear layer's weights are read once for each image, and bits are the fewest bytes; its batch is not known here.
PAIRS_OF_A_LINEAR_LAYER = {"avx512": 8, "avx2": 8, "neon": 12, "generic": 12}
# Rows of a filter with so few bits leave most of a word empty, and a pair costs as much as with 64.
FEW_BITS = 24
PAIRS_OF_FEW_BITS = 2
# Filters of few channels leave lookups of levels little to do for each table: with AVX2 alone products of bytes need
# about 0.6 times their time at 4 pairs in ResNet-20 (16 to 64 channels), and 0.75 times at 2 pairs.
PAIRS_BY_CHANNELS = ((32, 2), (64, 3))


def pairs_for_products(weights: Filters, maps: Maps, form: Form) -> int:
    """Return from how many pairs of planes on a layer takes products."""
    if maps.out == (1, 1):
        return PAIRS_OF_A_LINEAR_LAYER[isa()]
    if isa() == "avx2" and form.product == "pairs":
        for channels, pairs in PAIRS_BY_CHANNELS:
            if weights.channels <= channels:
                return pairs
    few = weights.shape[2] > 1 and weights.shape[3] * weights.channels <= FEW_BITS
    return PAIRS_OF_FEW_BITS if few and form.product == "vnni" else PAIRS_FOR_PRODUCTS[isa()]


class Choice(NamedTuple):
    """The kernels of a layer: what makes their path, their name and why it is they, in a few words.

    form: of products, None for counts of bits.
    """

    make: Callable[[Weights, Geometry, Maps], ConvPath]
    name: str
    why: str
    form: Form | None = None


# What `summary` calls products in each form.
PRODUCTS = {
    "vnni": "products of bytes (vpdpbusd)",
    "pairs": "products of bytes (vpmaddubsw)",
    "shorts": "products of 16 bits",
}


def choose(filters: Filters, maps: Maps) -> Choice:
    """Return the fastest kernels for inputs of these maps, of which the weights need not be known.

    Groups of fewer than four channels (depthwise convolutions) would leave most of a lane's products empty. Lookups
    work on 32 filters and four positions at a time.
    """
    pairs = len(filters.multipliers) * len(maps.multipliers)
    form = form_for(filters, maps) if pairs > 1 and filters.channels >= 4 else None
    why = f"{pairs} pair{'s' * (pairs > 1)} of planes"
    if form is not None:
        fewest = pairs_for_products(filters, maps, form)
        if pairs >= fewest:
            return Choice(partial(ProductPath, form=form), PRODUCTS[form.product], f"{why}, {fewest} or more", form)
        why += f", fewer than {fewest}"
    if isa() == "avx2" and filters.filters >= 24 and maps.out[0] * maps.out[1] >= 4:
        if len(maps.multipliers) > 1 and LevelLookupPath.fits(filters, maps.multipliers):
            return Choice(LevelLookupPath, "lookups of levels", why)
        if LookupPath.fits(filters):
            return Choice(LookupPath, "lookups", why)
    return Choice(PopcountPath, "population counts", why)


def path_for(weights: Weights, geometry: Geometry, maps: Maps) -> ConvPath:
    """Return the fastest way for inputs of these maps."""
    return choose(weights, maps).make(weights, geometry, maps)
