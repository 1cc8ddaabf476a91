"""Forcing each kernel of packed layers, for tests that run on all of them."""

import pytest
from bnn_kernels.compile.isa import has
from bnn_kernels.ops.binary_conv.level_lookup import LevelLookupPath
from bnn_kernels.ops.binary_conv.lookup import LookupPath
from bnn_kernels.ops.binary_conv.popcount import PopcountPath
from bnn_kernels.ops.integer_conv.form import Form
from bnn_kernels.ops.integer_conv.levels import input_code
from bnn_kernels.ops.integer_conv.products import ProductPath
from bnn_kernels.ops.packed_layers import choice

# Forms of products, and the CPU feature that each needs; without it they run in portable instructions.
FORMS = {
    "vnni16": (Form("vnni", 16, 4), "avx512vnni"),
    "vnni8": (Form("vnni", 8, 4), "avxvnni"),
    "pairs": (Form("pairs", 8, 4), "avx2"),
    "shorts16": (Form("shorts", 16, 2, 16), ""),
    "shorts": (Form("shorts", 8, 2, 16), ""),
    "usdot": (Form("usdot", 8, 4), "i8mm"),
    "sdot": (Form("sdot", 8, 4), "dotprod"),
    "sdot128": (Form("sdot", 8, 4, shift=128), "dotprod"),
    "smull": (Form("smull", 8, 4), "neon"),
    "smull128": (Form("smull", 8, 4, shift=128), "neon"),
}
NEON = ("usdot", "sdot", "sdot128", "smull", "smull128")
# The other widths of the same products are for the slow tests, and what takes long to compile in portable instructions.
SLOW = ("vnni8", "shorts16", *NEON) if has(FORMS["vnni16"][1]) else ("vnni16", "vnni8", "shorts16", *NEON)
FORM_NAMES = tuple(pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FORMS)
KERNELS = ("popcount", "lookup", "levels", *FORM_NAMES)


def holds(form, weights, maps):
    """Whether the operands of a form hold such levels."""
    largest = input_code(maps).largest
    if form.elements == 2:
        return max(largest, weights.largest) <= 32_767
    levels = weights.level_values
    if largest > 255 or levels.min() < -128 or levels.max() > 127:
        return False
    if form.product in ("sdot", "smull") and largest - form.shift > 127:
        return False
    # Two products of what is multiplied, u or u - 128, in 16 bits.
    most = max(form.shift, largest - form.shift)
    return form.product not in ("pairs", "smull") or 2 * most * weights.largest <= 32_767


def form_here(kernel):
    """Return the form of this name, portable if this CPU lacks its instruction."""
    form, feature = FORMS[kernel]
    return form._replace(portable=bool(feature) and not has(feature))


def force(kernel, monkeypatch):
    """Let all layers take this kernel wherever its sums hold what they must, whatever the shape.

    Skips the kernels of bits that need AVX2 without it.
    """
    if kernel in ("lookup", "levels") and not has("avx2"):
        pytest.skip("needs avx2")

    def choose(weights, geometry, maps):
        if kernel == "lookup" and LookupPath.fits(weights):
            return LookupPath(weights, geometry, maps)
        if kernel == "levels" and LevelLookupPath.fits(weights, maps.multipliers):
            return LevelLookupPath(weights, geometry, maps)
        if kernel in FORMS and holds(FORMS[kernel][0], weights, maps):
            return ProductPath(weights, geometry, maps, form_here(kernel))
        return PopcountPath(weights, geometry, maps)

    monkeypatch.setattr(choice, "path_for", choose)
