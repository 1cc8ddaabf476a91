"""Products of levels: what is theirs alone beside the tests that run on all kernels."""

import bnn_kernels as bk
import numba
import numpy as np
import pytest
from bnn_kernels import reference
from bnn_kernels.compile.isa import has
from bnn_kernels.compile.simd.int32_products import NEON, dots
from bnn_kernels.ops.packed_layers import choice
from bnn_kernels.runtime import threads
from forced_kernels import FORM_NAMES, FORMS, force, holds

FOUR_BITS = ((1, 2, 4, 8), False)


@pytest.mark.parametrize("kernel", FORM_NAMES)
def test_threads_write_their_own_rows(kernel, monkeypatch):
    """A pixel of few channels is written as 64 numbers: none of them may be another thread's."""
    force(kernel, monkeypatch)
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads, "MIN_WORK_TO_WAKE", 1)
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 16, (8, 5, 30, 6)), rng.integers(0, 16, (8, 5, 3, 3))
    bits, conv = bk.pack_levels(x, *FOUR_BITS), bk.PackedConv2d.from_levels(w, *FOUR_BITS, padding=1)
    expected = reference.conv2d(x, w, padding=1)
    before = bk.get_num_threads()
    bk.set_num_threads(2)
    try:
        for _ in range(60):
            np.testing.assert_array_equal(conv(bits), expected)
    finally:
        bk.set_num_threads(before)


# Product and lanes, and the CPU feature of its instructions.
INSTRUCTIONS = {
    ("vnni", 16): "avx512vnni",
    ("vnni", 8): "avxvnni",
    ("pairs", 16): "avx512bw",
    ("pairs", 8): "avx2",
    ("usdot", 8): "i8mm",
    ("sdot", 8): "dotprod",
    ("smull", 8): "neon",
}


def in_numpy(product, total, u, s):
    """total + the products, int32 or saturated int16, of bytes u (unsigned) and s (signed)."""
    products = (u.view(np.int8) if product in ("sdot", "smull") else u).astype(np.int64) * s
    if product == "smull":  # two products in 16 bits, modulo 2**16
        products = products.reshape(-1, 2).sum(1).astype(np.int16).astype(np.int64)
    if product != "pairs":
        return (total.view(np.int32) + products.reshape(len(total) // 4, -1).sum(1)).astype(np.int32)
    pairs = products.reshape(-1, 2).sum(1).clip(-32_768, 32_767)
    return (total.view(np.int16) + pairs).astype(np.int16).view(np.int32)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("product", "lanes"), INSTRUCTIONS)
def test_instructions_and_portable_ones_do_what_numpy_does(product, lanes, portable):
    feature = INSTRUCTIONS[product, lanes]
    if not portable and not has(feature):
        pytest.skip(f"needs {feature}")
    simd = dots(lanes, product, portable)
    load, dot, store, look_up, widened, zero = (
        simd.load, simd.dot, simd.store, simd.look_up, simd.widened, simd.zero,
    )  # fmt: skip
    pairs = product == "pairs"

    @numba.njit
    def run(total, u, s, out):
        for at in range(0, len(u), 4 * lanes):
            a, b, to = load(u, np.uint64(at)), load(s, np.uint64(at)), np.uint64(at // 4)
            t = load(total, np.uint64(at))
            store(out[0], to, dot(t, a, b))
            store(out[1], to, look_up(a, b))
            store(out[2], to, widened(t) if pairs else zero())

    rng = np.random.default_rng(lanes)
    u, s, total = (rng.integers(-128, 128, 64 * 500, np.int8) for _ in range(3))
    # Ends, on which a pair of products saturates and a sum wraps around.
    u[:6400:3], s[:6400:2], total[:3200] = -1, -128, 127
    out = np.empty((3, len(u) // 4), np.int32)
    run(total, u, s, out)
    np.testing.assert_array_equal(out[0], in_numpy(product, total, u.view(np.uint8), s))
    rows = np.take_along_axis(u.reshape(-1, 16), s.reshape(-1, 16).astype(np.int64) & 15, 1)
    looked_up = np.where(s < 0, 0, rows.reshape(-1))
    if product in NEON:  # tbl gives 0 for other places
        looked_up, out[1].view(np.int8)[s >= 16] = np.where(s >= 16, 0, looked_up), 0
    np.testing.assert_array_equal(out[1].view(np.int8), looked_up)
    sums = total.view(np.int16).reshape(-1, 2).sum(1) if pairs else 0
    np.testing.assert_array_equal(out[2], sums)


def test_what_is_taken_from_inputs_is_given_back(monkeypatch):
    """The one form of NEON that is not for the slow tests alone: zeros and a level around the map, and a stride."""
    force("sdot128", monkeypatch)
    rng = np.random.default_rng(0)
    planes, w_planes = (tuple(1 << p for p in range(8)), False), ((1, 2, 4, 8, 16, 32, 64, -128), False)
    x, w = rng.integers(0, 256, (1, 6, 7, 9)), rng.integers(-128, 128, (20, 6, 3, 2))
    for pad_value in (0, 255):
        geometry = {"padding": (2, 1), "stride": (2, 1), "pad_value": pad_value}
        conv = bk.PackedConv2d.from_levels(w, *w_planes, **geometry)
        np.testing.assert_array_equal(conv(bk.pack_levels(x, *planes)), reference.conv2d(x, w, **geometry))


def random_layer(rng):
    """Return (levels, planes) of an input, the same of a weight, and the geometry of a small layer."""
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, filters = int(rng.integers(1, 20)), int(rng.integers(1, 40))
    kernel = tuple(int(k) for k in rng.integers(1, 4, 2))
    geometry = {
        name: tuple(int(v) for v in rng.integers(low, high, 2))
        for name, low, high in (("stride", 1, 4), ("padding", 0, 3), ("dilation", 1, 3))
    }
    size = [d * (k - 1) + int(rng.integers(1, 9)) for d, k in zip(geometry["dilation"], kernel, strict=True)]
    operands = []
    for most, shape in (
        (8, (int(rng.integers(1, 3)), channels * groups, *size)),
        (7, (filters * groups, channels, *kernel)),
    ):
        bits, kind = int(rng.integers(1, most + 1)), rng.choice(["codes", "signs", "ternary"])
        multipliers = (1, -1) if kind == "ternary" else tuple(1 << p for p in range(bits))
        signed = bool(kind == "signs" and (bits < 7 or most == 8))
        codes = rng.choice([0, (1 << len(multipliers)) - 1], shape)  # ends, and half the time what lies between
        if rng.integers(2):
            codes = rng.integers(0, 1 << len(multipliers), shape)
        planes = [(1 - 2 * (codes >> p & 1)) if signed else codes >> p & 1 for p in range(len(multipliers))]
        operands.append((sum(m * plane for m, plane in zip(multipliers, planes, strict=True)), (multipliers, signed)))
    return *operands, geometry | {"groups": groups}


def check_random_layers(kernel, count, monkeypatch):
    """Whether so many layers that the form holds give what the reference gives."""
    taken = []
    force(kernel, monkeypatch)
    choose = choice.path_for

    def note(weights, geometry, maps):
        taken.append(holds(FORMS[kernel][0], weights, maps))
        return choose(weights, geometry, maps)

    monkeypatch.setattr(choice, "path_for", note)
    rng = np.random.default_rng(0)
    while sum(taken) < count:
        (x, x_planes), (w, w_planes), geometry = random_layer(rng)
        conv = bk.PackedConv2d.from_levels(w, *w_planes, **geometry)
        found = conv(bk.pack_levels(x, *x_planes))
        np.testing.assert_array_equal(found, reference.conv2d(x, w, **geometry), str((x_planes, w_planes, geometry)))


@pytest.mark.parametrize("kernel", FORM_NAMES)
def test_random_layers(kernel, monkeypatch):
    check_random_layers(kernel, 40, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", FORMS)
def test_thousands_of_random_layers(kernel, monkeypatch):
    check_random_layers(kernel, 2000, monkeypatch)
