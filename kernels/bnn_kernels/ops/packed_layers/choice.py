"""Which kernels compute a layer's sums: the fastest of those that this CPU has and that hold its sums."""

from bnn_kernels.compile.isa import isa
from bnn_kernels.ops.binary_conv.level_lookup import LevelLookupPath
from bnn_kernels.ops.binary_conv.lookup import LookupPath
from bnn_kernels.ops.binary_conv.popcount import PopcountPath
from bnn_kernels.ops.conv_path import ConvPath
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.integer_conv.form import form_for
from bnn_kernels.ops.integer_conv.products import ProductPath
from bnn_kernels.ops.weights import Weights

# From so many pairs of planes on, products of levels take less time than population counts of every pair.
PAIRS_FOR_PRODUCTS = {"avx512": 4, "avx2": 6, "neon": 12, "generic": 12}


def path_for(weights: Weights, geometry: Geometry, maps: Maps) -> ConvPath:
    """Return the fastest way for inputs of these maps.

    Lookups work on 32 filters and four positions at a time.
    """
    pairs = len(weights.multipliers) * len(maps.multipliers)
    form = form_for(weights, maps) if pairs >= PAIRS_FOR_PRODUCTS[isa()] and weights.channels >= 4 else None
    if form is not None:
        return ProductPath(weights, geometry, maps, form)
    if isa() == "avx2" and weights.filters >= 24 and maps.out[0] * maps.out[1] >= 4:
        if len(maps.multipliers) > 1 and LevelLookupPath.fits(weights, maps.multipliers):
            return LevelLookupPath(weights, geometry, maps)
        if LookupPath.fits(weights):
            return LookupPath(weights, geometry, maps)
    return PopcountPath(weights, geometry, maps)
