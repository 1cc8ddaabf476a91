"""Every public constructor and call, with wrong ranks, shapes, dtypes and layouts: a clear error or a right answer."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels import reference

RNG = np.random.default_rng(0)
FLAT = np.zeros((1, 1), np.float32)
PACK = {"thresholds": FLAT, "flip": np.zeros(1, bool), "codes": np.array([1, 0], np.uint8)}
SIGNS = {"signed": True, "multipliers": [1]}


def weight(*shape):
    return np.random.default_rng(1).standard_normal(shape)


CONV, SEQUENCE, LINEAR = (
    bk.PackedConv2d(weight(5, 3, 2, 2)),
    bk.PackedConv1d(weight(5, 3, 2)),
    bk.PackedLinear(weight(5, 12)),
)
SIGN = bk.Thresholds.sign(np.zeros(5, np.int32), np.zeros(5, bool))
EPILOGUE = bk.Epilogue(5, residual="after", bounds=np.zeros(5, np.float32))
MODEL = bk.PackedModel(
    (3, 4, 4), [bk.StepSpec("pack", ["x"], ["a"], SIGNS, PACK), bk.StepSpec("unpack", ["a"], ["b"], {"scale": 1.0})]
)
FLIP, CODES = np.zeros(5, bool), np.array([1, 0], np.uint8)

# Every public call of one argument that is looked at.
CALLS = {
    "pack": bk.pack,
    "pack_levels": lambda x: bk.pack_levels(x, (1,), True),
    "pack_levels.multipliers": lambda x: bk.pack_levels(np.ones((1, 3), int), x, True),
    "pack_levels.signed": lambda x: bk.pack_levels(np.ones((1, 3), int), (1,), x),
    "unpack": bk.unpack,
    "BitTensor": lambda x: bk.unpack(bk.BitTensor(x, (2, 3))),
    "BitTensor.shape": lambda x: bk.unpack(bk.BitTensor(np.zeros((1, 2, 1, 1, 1), np.uint64), x)),
    "BitTensor.signed": lambda x: bk.BitTensor(np.zeros((1, 2, 1, 1, 1), np.uint64), (2, 3), x),
    "BitTensor.multipliers": lambda x: bk.BitTensor(np.zeros((1, 2, 1, 1, 1), np.uint64), (2, 3), True, x),
    "PackedConv2d": bk.PackedConv2d,
    "PackedConv2d.from_levels": bk.PackedConv2d.from_levels,
    "PackedConv2d.from_codes": bk.PackedConv2d.from_codes,
    "PackedConv1d": bk.PackedConv1d,
    "PackedConv1d.from_levels": bk.PackedConv1d.from_levels,
    "PackedLinear": bk.PackedLinear,
    "PackedLinear.from_levels": bk.PackedLinear.from_levels,
    "PackedLinear.from_codes": bk.PackedLinear.from_codes,
    "PackedLinear.from_dense_bits": lambda x: bk.PackedLinear.from_dense_bits(x, (5, 12)),
    **{
        f"PackedConv2d.{name}": lambda x, name=name: bk.PackedConv2d(weight(4, 3, 2, 2), **{name: x})
        for name in ("stride", "padding", "dilation", "groups", "pad_value")
    },
    "conv": CONV,
    "conv.to_levels": lambda x: CONV.to_levels(x, SIGN),
    "conv.to_levels.thresholds": lambda x: CONV.to_levels(bk.pack(weight(1, 3, 4, 4)), x),
    "conv.finish": lambda x: CONV.finish(x, bk.Epilogue(5)),
    "conv.finish.epilogue": lambda x: CONV.finish(bk.pack(weight(1, 3, 4, 4)), x),
    "conv.finish.residual": lambda x: CONV.finish(bk.pack(weight(1, 3, 4, 4)), EPILOGUE, x),
    "conv.with_threshold": lambda x: CONV.with_threshold(x, FLIP),
    "conv.with_threshold.flip": lambda x: CONV.with_threshold(np.zeros(5, np.int32), x),
    "sequence": SEQUENCE,
    "sequence.to_levels": lambda x: SEQUENCE.to_levels(x, SIGN),
    "linear": LINEAR,
    "linear.to_levels": lambda x: LINEAR.to_levels(x, SIGN),
    "linear.finish": lambda x: LINEAR.finish(x, bk.Epilogue(5)),
    "linear.with_threshold": lambda x: LINEAR.with_threshold(x, FLIP),
    "ThresholdConv2d": lambda x: bk.ThresholdConv2d(x, SIGN),
    "ThresholdLinear": lambda x: bk.ThresholdLinear(LINEAR, x),
    "threshold_conv": CONV.with_threshold(np.zeros(5, np.int32), FLIP),
    "threshold_linear": LINEAR.with_threshold(np.zeros(5, np.int32), FLIP),
    "Thresholds": lambda x: bk.Thresholds(x, FLIP, CODES, True, (1,)),
    "Thresholds.codes": lambda x: bk.Thresholds(np.zeros((1, 5), np.int32), FLIP, x, True, (1,)),
    "Thresholds.multipliers": lambda x: bk.Thresholds(np.zeros((1, 5), np.int32), FLIP, CODES, True, x),
    "thresholds": SIGN,
    "Epilogue": bk.Epilogue,
    **{
        f"Epilogue.{name}": lambda x, name=name: bk.Epilogue(5, **{name: x})
        for name in ("scale", "shift", "norm_scale", "pre", "bounds", "flip", "low", "high", "residual")
    },
    "epilogue": lambda x: EPILOGUE(x, np.zeros((2, 3, 3, 5), np.float32)),
    "epilogue.residual": lambda x: EPILOGUE(np.zeros((2, 3, 3, 5), np.float32), x),
    "model": MODEL,
    "PackedModel": lambda x: bk.PackedModel(x, MODEL.steps),
    "PackedModel.steps": lambda x: bk.PackedModel((3, 4, 4), x),
    "PackedModel.outputs": lambda x: bk.PackedModel((3, 4, 4), MODEL.steps, outputs=[x]),
    "StepSpec": lambda x: bk.PackedModel((3, 4, 4), [bk.StepSpec(x, ["x"], ["a"])]),
    "StepSpec.inputs": lambda x: bk.PackedModel((3, 4, 4), [bk.StepSpec("pack", x, ["a"], SIGNS, PACK)]),
    "StepSpec.attrs": lambda x: bk.PackedModel((3, 4, 4), [bk.StepSpec("pack", ["x"], ["a"], x, PACK)]),
    "StepSpec.tensors": lambda x: bk.PackedModel(
        (3, 4, 4), [bk.StepSpec("pack", ["x"], ["a"], SIGNS, PACK | {"codes": x})]
    ),
    "reference.sign": reference.sign,
    "reference.pack_words": reference.pack_words,
    "reference.conv2d": lambda x: reference.conv2d(x, weight(5, 3, 2, 2)),
    "reference.conv2d.weight": lambda x: reference.conv2d(weight(1, 3, 4, 4), x),
    "reference.linear": lambda x: reference.linear(x, weight(5, 12)),
    "reference.threshold": lambda x: reference.threshold(x, np.zeros(5), FLIP),
    "reference.thresholds": lambda x: reference.thresholds(np.zeros((2, 5)), x, FLIP),
    "reference.max_pool2d": lambda x: reference.max_pool2d(x, 2, 2),
    "reference.avg_pool2d": lambda x: reference.avg_pool2d(x, 2, 2),
    "reference.input_scale": lambda x: reference.input_scale(x, 2),
}  # fmt: skip


def odd_values():
    """What somebody may hand over by mistake."""
    yield from (
        None,
        "text",
        b"bytes",
        1.5,
        float("nan"),
        float("inf"),
        -1,
        0,
        True,
        10**30,
        1 << 62,
        object(),
        {},
        {"a": 1},
    )
    yield from ([], (), [[]], [1, [2, 3]], ["a"], [None], (1, 2), (-1, 3), (2.0, 3.0), (1, 2, 3, 4, 5), ("x", (3,)))
    yield from (
        np.float32(1),
        np.array(None),
        np.array("a"),
        np.array([object()]),
        np.ma.masked_array([[1.0]], [[True]]),
    )
    for shape in ((), (0,), (3,), (5,), (0, 0), (1, 12), (2, 3), (1, 3, 4), (2, 0, 3), (1, 3, 4, 4), (2, 3, 3, 5),
                  (0, 3, 4, 4), (1, 0, 4, 4), (1, 3, 0, 4), (5, 3, 2, 2), (1, 2, 1, 1, 1), (1,) * 6):  # fmt: skip
        for dtype in ("f4", "f8", "f2", ">f4", "i1", "u1", "i4", ">i4", "u8", "bool", "c8", "M8[s]", "O", "U1", "g"):
            yield np.zeros(shape, dtype)
    yield from (bk.pack(np.ones(shape)) for shape in ((2, 3), (1, 3, 4), (1, 3, 4, 4), (0, 12)))


@pytest.mark.parametrize("name", CALLS)
def test_a_clear_error_or_an_answer(name):
    answers = 0
    with np.errstate(all="ignore"):
        for value in odd_values():
            try:
                CALLS[name](value)
                answers += 1
            except (TypeError, ValueError) as error:
                message = str(error)
                assert message, value
                # Python's own words say nothing about the argument.
                for words in ("NoneType", "object is not", "object has no", "not supported between"):
                    assert words not in message or "got" in message or "must be" in message, (value, message)
            except MemoryError:
                assert "padding" in name or "Epilogue" in name, (name, value)


def variants(x):
    """The same numbers in other clothes."""
    yield x
    yield np.asfortranarray(x)
    yield x[::-1][::-1]
    spread = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    spread[..., ::2] = x
    yield spread[..., ::2]
    yield np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    yield x.astype(x.dtype.newbyteorder(">"))
    readonly = x.copy()
    readonly.flags.writeable = False
    yield readonly
    shifted = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    yield shifted


def test_the_same_numbers_give_the_same_answers():
    maps, rest = weight(2, 3, 4, 4), weight(2, 3, 3, 5).astype(np.float32)
    dots = np.random.default_rng(0).integers(-9, 9, (2, 3, 3, 5)).astype(np.int32)
    for dtype in (np.float32, np.float64):
        wanted = MODEL(maps.astype(np.float32)), CONV(maps), bk.pack(maps).words
        for x in variants(maps.astype(dtype)):
            for found, expected in zip((MODEL(x), CONV(x), bk.pack(x).words), wanted, strict=True):
                np.testing.assert_array_equal(found, expected)
    for w in variants(weight(5, 3, 2, 2)):
        np.testing.assert_array_equal(bk.PackedConv2d(w)(maps), CONV(maps))
    for y, other in zip(variants(dots), variants(rest), strict=True):
        np.testing.assert_array_equal(EPILOGUE(y, other)[0], EPILOGUE(dots, rest)[0])
        np.testing.assert_array_equal(SIGN(y).words, SIGN(dots).words)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (12, 1), (1, 12)])
def test_linear_layers_of_sequences(shape):
    x = weight(7, *shape)
    expected = reference.linear(reference.sign(x), reference.sign(weight(5, 12)))
    assert expected.shape == (7, 5)
    np.testing.assert_array_equal(LINEAR(x), expected)
    t = np.zeros(5, np.int32)
    np.testing.assert_array_equal(bk.unpack(LINEAR.with_threshold(t, FLIP)(x)) < 0, expected < 0)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint64])
def test_levels_of_every_kind_of_integer(dtype):
    planes = ((64, 32, 16, 8, 4, 2, 1), True)
    levels = np.array([[127, 1, 3, -127 if np.dtype(dtype).kind == "i" else 127]]).astype(dtype)
    np.testing.assert_array_equal(bk.unpack(bk.pack_levels(levels, *planes)), levels.astype(np.float32))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None, 10**9, [2]])
def test_numbers_of_threads(n):
    before = bk.get_num_threads()
    with pytest.raises(ValueError, match="number of threads must be an integer of at least 1"):
        bk.set_num_threads(n)
    assert bk.get_num_threads() == before


@pytest.mark.parametrize("padding", [(1, 2, 3), (1, 2, 3, -1), (1, 2, 3, 4, 5), "1", -1])
def test_padding_that_is_none_names_every_form(padding):
    with pytest.raises(ValueError, match=r"padding must be .* pair \(y, x\) .* \(top, left, bottom, right\)"):
        bk.PackedConv2d(np.ones((2, 2, 3, 3), np.float32), padding=padding)
