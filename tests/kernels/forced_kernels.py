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

# Forms of products, and the CPU feature that each needs.
FORMS = {
    "vnni16": (Form("vnni", 16, 4), "avx512vnni"),
    "vnni8": (Form("vnni", 8, 4), "avxvnni"),
    "pairs": (Form("pairs", 8, 4), "avx2"),
    "shorts16": (Form("shorts", 16, 2, 16), "avx512bw"),
    "shorts": (Form("shorts", 8, 2, 16), ""),
}
# The other widths of the same products are for the slow tests.
OTHER_WIDTHS = ("vnni8", "shorts16")
KERNELS = tuple(
    pytest.param(kernel, marks=pytest.mark.slow) if kernel in OTHER_WIDTHS else kernel
    for kernel in ("popcount", "lookup", "levels", *FORMS)
)


def holds(form, weights, maps):
    """Whether the operands of a form hold such levels."""
    largest = input_code(maps).largest
    if form.elements == 2:
        return max(largest, weights.largest) <= 32_767
    levels = weights.level_values
    if largest > 255 or levels.min() < -128 or levels.max() > 127:
        return False
    return form.product != "pairs" or 2 * largest * weights.largest <= 32_767


def force(kernel, monkeypatch):
    """Let all layers take this kernel wherever its sums hold what they must, whatever the shape; skips without CPU."""
    feature = FORMS[kernel][1] if kernel in FORMS else "avx2"
    if kernel != "popcount" and feature and not has(feature):
        pytest.skip(f"needs {feature}")

    def choose(weights, geometry, maps):
        if kernel == "lookup" and LookupPath.fits(weights):
            return LookupPath(weights, geometry, maps)
        if kernel == "levels" and LevelLookupPath.fits(weights, maps.multipliers):
            return LevelLookupPath(weights, geometry, maps)
        if kernel in FORMS and holds(FORMS[kernel][0], weights, maps):
            return ProductPath(weights, geometry, maps, FORMS[kernel][0])
        return PopcountPath(weights, geometry, maps)

    monkeypatch.setattr(choice, "path_for", choose)
