"""Which kernels compute a layer's sums: the fastest of those that this CPU has and that hold its sums."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

from bnn_kernels.compile.isa import isa
from bnn_kernels.ops.binary_conv.bit_path import is_ternary
from bnn_kernels.ops.binary_conv.level_lookup import LevelLookupPath
from bnn_kernels.ops.binary_conv.lookup import LookupPath
from bnn_kernels.ops.binary_conv.popcount import PopcountPath
from bnn_kernels.ops.conv_path import ConvPath
from bnn_kernels.ops.depthwise.levels import DepthwisePath, channel_form
from bnn_kernels.ops.depthwise.windows import suits
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.integer_conv.form import form_for
from bnn_kernels.ops.integer_conv.products import ProductPath
from bnn_kernels.ops.packed_layers.costs import FEW, fewest_pairs, kind_of
from bnn_kernels.ops.weights import Weights

# Which sums layers of several pairs of planes take, whatever the costs: "counts" or "products".
VARIABLE = "BNN_KERNELS_SUMS"
SUMS = ("counts", "products")
_forced: ContextVar[str | None] = ContextVar("forced", default=None)


@functools.cache
def _from_environment() -> str | None:
    wanted = os.environ.get(VARIABLE) or None
    if wanted is not None and wanted not in SUMS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(SUMS)}, or empty for the faster; got {wanted!r}")
    return wanted


@contextlib.contextmanager
def force(sums: str) -> Iterator[None]:
    """Let layers that meet their first input here take these sums, one of `SUMS`, wherever they can."""
    token = _forced.set(sums)
    try:
        yield
    finally:
        _forced.reset(token)


class Choice(NamedTuple):
    """The kernels of a layer: what makes their path, their name and why it is they, in a few words.

    multiplies: whether levels are multiplied, which takes them as bytes too, rather than their bits counted.
    """

    make: Callable[[Weights, Geometry, Maps], ConvPath]
    name: str
    why: str
    multiplies: bool = False


# What `summary` calls products in each form.
PRODUCTS = {
    "vnni": "products of bytes (vpdpbusd)",
    "pairs": "products of bytes (vpmaddubsw)",
    "shorts": "products of 16 bits",
    "usdot": "products of bytes (usdot)",
    "sdot": "products of bytes (sdot)",
    "smull": "products of bytes (smull)",
}


def choose(filters: Filters, maps: Maps) -> Choice:
    """Return the fastest kernels for inputs of these maps, of which the weights need not be known.

    Where a tap is a run of its own, as in groups, fewer than four channels leave a part of a lane's products empty:
    products then take as much longer. Those of depthwise convolutions lie side by side, whatever the number of planes.
    A single pair of planes is counted, unless most of a word would be empty and the costs say that products are faster.
    Lookups work on 32 filters and four positions at a time.
    """
    lookups = isa() == "avx2" and filters.filters >= 24 and maps.out[0] * maps.out[1] >= 4
    # Ternary weights take one count, as binary ones do, but two look-ups.
    pairs = (1 if is_ternary(filters) and not lookups else len(filters.multipliers)) * len(maps.multipliers)
    forced = _forced.get() or _from_environment()
    if suits(filters.groups, filters.channels, filters.filters) and (forced != "counts" or maps.zero is not None):
        channels = channel_form(filters, maps)
        if channels is not None:
            name = f"depthwise products, sums of {channels.sums} bits"
            why = f"{filters.groups} groups of {filters.channels} to {filters.filters} channels"
            return Choice(partial(DepthwisePath, form=channels), name, why, True)
    form = form_for(filters, maps) if pairs > 1 or kind_of(filters, maps) == FEW else None
    why = f"{pairs} pair{'s' * (pairs > 1)} of planes"
    if maps.zero is not None:
        if form is None:
            raise ValueError("inputs with zero points need levels of several planes that 16 bits hold")
        return Choice(partial(ProductPath, form=form), PRODUCTS[form.product], "zero points", True)
    if form is not None:
        fewest, measured = fewest_pairs(filters, maps, form.product)
        if filters.groups > 1:
            fewest = -(-fewest * max(filters.channels, form.elements) // filters.channels)
        takes = forced == "products" if forced else pairs >= fewest
        if forced:
            why += ", as asked for"
        else:
            why += f", {fewest} or more" if takes else f", fewer than {fewest}"
            why += " (measured on this CPU)" * measured
        if takes:
            return Choice(partial(ProductPath, form=form), PRODUCTS[form.product], why, True)
    if lookups:
        if len(maps.multipliers) > 1 and LevelLookupPath.fits(filters, maps.multipliers):
            return Choice(LevelLookupPath, "lookups of levels", why)
        if LookupPath.fits(filters):
            return Choice(LookupPath, "lookups", why)
    return Choice(PopcountPath, "population counts", why)


def path_for(weights: Weights, geometry: Geometry, maps: Maps) -> ConvPath:
    """Return the fastest way for inputs of these maps."""
    return choose(weights, maps).make(weights, geometry, maps)
