"""Binary convolution over sequences: exact against the reference of a map one row high."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference


@pytest.mark.parametrize("channels", [1, 20, 64, 130])
@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 2}, {"stride": 3, "padding": 1, "pad_value": -1}, {"dilation": 4}]
)
def test_signs(channels, geometry):
    rng = np.random.default_rng(channels)
    x, w = rng.standard_normal((2, channels, 23)).astype(np.float32), rng.standard_normal((9, channels, 5))
    one_row = {
        k: (1, v) if k in ("stride", "dilation") else (0, v) if k == "padding" else v for k, v in geometry.items()
    }
    expected = reference.conv2d(reference.sign(x)[:, :, None], reference.sign(w)[:, :, None], **one_row)[:, :, 0]
    conv = bk.PackedConv1d(w, **geometry)
    bits = bk.pack(x)
    assert bits.shape == x.shape
    np.testing.assert_array_equal(bk.unpack(bits), reference.sign(x))
    np.testing.assert_array_equal(conv(bits), expected)
    np.testing.assert_array_equal(conv(x), expected)
    t, flip = rng.integers(-9, 9, 9).astype(np.int32), rng.random(9) < 0.5
    found = conv.with_threshold(t, flip)(x)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(bk.unpack(found) < 0, reference.threshold(expected, t, flip))


def test_planes_groups_and_epilogue():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 4, (2, 12, 17)), rng.choice([-1, 0, 1], (8, 6, 3))
    conv = bk.PackedConv1d.from_levels(w, (1, -1), False, padding=1, groups=2)
    bits = bk.pack_levels(x, (1, 2), False)
    expected = reference.conv2d(x[:, :, None], w[:, :, None], padding=(0, 1), groups=2)
    np.testing.assert_array_equal(conv(bits), expected[:, :, 0])
    epilogue = bk.Epilogue(8, scale=rng.standard_normal(8).astype(np.float32), bounds=np.zeros(8, np.float32))
    floats, signs = conv.finish(bits, epilogue)
    plain, plain_signs = epilogue.apply_reference(expected.transpose(0, 2, 3, 1).astype(np.int32))
    np.testing.assert_array_equal(floats, plain)
    assert signs.shape == (2, 8, 17)
    np.testing.assert_array_equal(signs.words, plain_signs.words)
    assert conv.nbytes == 2 * 8 * 6 * 3 // 8 and conv.shape == (8, 6, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bk.PackedConv1d(np.ones((4, 3))), r"\(4, 3\)"),
        (lambda: bk.PackedConv1d(np.ones((4, 3, 3)))(np.ones((1, 3, 5, 5))), r"\(N, C, L\).*\(1, 3, 5, 5\)"),
        (lambda: bk.PackedConv1d(np.ones((4, 3, 3)))(np.ones((1, 2, 9))), "2 channels"),
        (
            lambda: bk.PackedConv1d(np.ones((4, 3, 3))).with_threshold(np.zeros(3, np.int32), np.zeros(3, bool)),
            "3 thresh",
        ),
        (lambda: bk.PackedConv2d(np.ones((4, 3, 3, 3)))(np.ones((1, 3, 9))), r"\(1, 3, 9\)"),
    ],
)
def test_bad_calls_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
