"""A small plan with every kind of step, for tests of files and of running."""

import re

import bnn_kernels as bk
import numpy as np
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.model.state import StateSpec

SIGNS = {"signed": True, "multipliers": [1]}


def _conv(o, c, k, padding=0, groups=1):
    return {
        "shape": [o, c // groups, k, k],
        "stride": [1, 1],
        "padding": [padding] * 2,
        "dilation": [1, 1],
        "groups": groups,
    }


class _Writer:
    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.steps = []

    def add(self, op, inputs, outputs, attrs=None, **tensors):
        named = {re.sub(r"_(\d)$", r".\1", name): tensor for name, tensor in tensors.items()}
        self.steps.append(bk.StepSpec(op, inputs, outputs, attrs or {}, named, [f"{op} {o}" for o in outputs]))

    def floats(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def bits(self, *shape, planes=1):
        return to_dense_bits(self.rng.integers(0, 1 << planes, shape).astype(np.uint8), planes)

    def pack(self, register, output, channels):
        codes = np.array([1, 0], np.uint8)
        flip = self.rng.random(channels) < 0.5
        self.add("pack", [register], [output], SIGNS, thresholds=self.floats(1, channels), flip=flip, codes=codes)


def rich_model():
    """Return a PackedModel of inputs (4, 6, 6) and (3,), outputs (5,) and (4, 6, 6), and four states."""
    w = _Writer()
    add, floats = w.add, w.floats
    binary = {"terms": [SIGNS], "pad_level": 0}
    add("float_conv", ["x"], ["a"], {**_conv(8, 4, 3, 1), "pad_value": 0.0}, weight=floats(8, 4, 3, 3), bias=floats(8))
    w.pack("a", "b", 8)
    both = {"bounds": floats(8), "flip": w.rng.random(8) < 0.5}
    add(
        "binary_conv", ["b", "a"], ["c", "d"], {**_conv(8, 8, 3, 1), **binary, "output": "float", "residual": "before"},
        bits_0=w.bits(8, 8, 3, 3), scale_0=floats(8), shift=floats(8), slope=np.abs(floats(8)), **both,
    )  # fmt: skip
    levels = {"thresholds": np.array([[-3] * 8, [0] * 8, [4] * 8], np.int32), "flip": np.zeros(8, bool)}
    levels["codes"] = np.arange(4, dtype=np.uint8)
    two_bits = {"signed": False, "multipliers": [1, 2]}
    add("binary_conv", ["d"], ["e"], {**_conv(8, 8, 1), **binary, "output": "int"}, bits_0=w.bits(8, 8, 1, 1))
    pool = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0]}
    add("pool_int", ["e"], ["f"], pool, rising=w.rng.random(8) < 0.5)
    add("threshold", ["f"], ["g"], two_bits, **levels)
    add("pool_bits", ["d"], ["h"], pool, rising=w.rng.random(8) < 0.5)
    signs = {"thresholds": np.zeros((1, 4), np.int32), "flip": np.zeros(4, bool), "codes": np.array([1, 0], np.uint8)}
    add(
        "binary_conv", ["g"], ["i"], {**_conv(4, 8, 3, 1, 2), **binary, **SIGNS, "output": "bits"},
        bits_0=w.bits(4, 4, 3, 3), **signs,
    )  # fmt: skip
    add("unpack", ["h"], ["j"], {"scale": 0.5})
    add("unpack", ["i"], ["k"], values=floats(2))
    parts = {"input_terms": [{"signed": False, "multipliers": [1]}, SIGNS], "input_offset": True}
    parts["weight_offset"] = True
    add(
        "binary_conv", ["g"], ["kk"], {**_conv(4, 8, 3, 1), **binary, **parts, "output": "float"},
        bits_0=w.bits(4, 8, 3, 3), **{f"scale_{i}": floats(4) for i in range(6)},
    )  # fmt: skip
    add("combine", ["k", "kk"], ["kkk"], {"kind": "add"})
    add("level_matmul", ["g", "h"], ["k1"], {"scale": 0.125})
    add("select", ["k1"], ["k2"], channels=np.array([0, 2, 1, -1], np.int32))
    add("combine", ["kkk", "k2"], ["k3"], {"kind": "maximum"})
    add("concat", ["j", "k3"], ["l"], {"count": 2})
    add("select", ["l"], ["m"], channels=np.array([0, 2, 4, -1, 11, 9], np.int32), rows=np.array([2, 0], np.int32))
    add("avg_pool", ["m"], ["n"], {"kernel": [2, 3], "stride": [1, 1], "padding": [0, 0]})
    add("activation", ["n"], ["o"], {"kind": "sigmoid"})
    add("combine", ["m", "o"], ["p"], {"kind": "multiply"})
    add("max_pool", ["p"], ["q"], {"kernel": [2, 3], "stride": [1, 1], "padding": [0, 0]})
    add("reshape", ["q"], ["r"], {"shape": [6]})
    add("select", ["x1"], ["x11"], channels=np.array([-1, -1], np.int32))
    table = {"shape": [3, 6], "terms": [SIGNS], "weight_offset": True}
    add("embedding", ["x11"], ["x12"], table, bits_0=w.bits(3, 6), scale_0=floats(3), scale_1=floats(3))
    few = {"kind": "rnn_tanh", "shape": [6, 6], "backwards": True, "takes_hidden": True, "terms": [SIGNS]}
    add("recurrent", ["x12", "x5"], ["x122"], few, bits_0=w.bits(6, 6), scale_0=floats(6) / 6, bias=floats(6))
    add("avg_pool", ["x122"], ["x13"], {"kernel": [1, 2], "stride": [1, 1], "padding": [0, 0]})
    add("reshape", ["x13"], ["x14"], {"shape": [6]})
    add("reshape", ["r"], ["r1"], {"shape": [1, 2, 3]})
    add("cached_attention", ["r1", "r1", "r1", "x3", "x4", "x2"], ["r2"])
    add("reshape", ["r2"], ["r3"], {"shape": [6]})
    add("combine", ["r3", "x5"], ["r4"], {"kind": "multiply"})
    add("combine", ["r4", "x14"], ["rr"], {"kind": "add"})
    add("concat", ["rr", "x1"], ["s"], {"count": 2})
    add("elementwise", ["s"], ["t"], {"channels": 9, "low": -2.0, "high": 2.0}, scale=floats(9), shift=floats(9))
    w.pack("t", "u", 9)
    linear = {"shape": [7, 9], "terms": [{"signed": False, "multipliers": [1, -1]}], "output": "float"}
    ternary = to_dense_bits(w.rng.integers(0, 3, (7, 9)).astype(np.uint8), 2)
    add("binary_linear", ["u", "t"], ["v"], {**linear, "input_scale": True}, bits_0=ternary, scale_0=floats(7))
    terms = {"shape": [5, 7], "terms": [SIGNS]}
    add("float_linear", ["v"], ["w"], terms, bits_0=w.bits(5, 7), scale_0=floats(5), bias=floats(5))
    windows = np.array([[0, 3], [2, 4], [3, 6]], np.int32)
    add("window_pool", ["c"], ["c1"], {"kind": "max"}, rows=windows, columns=windows)
    sizes = {"row_sizes": np.array([2, 1], np.int32), "column_sizes": np.array([2, 2, 3], np.int32)}
    add(
        "window_pool",
        ["c1"],
        ["c2"],
        {"kind": "avg"},
        rows=np.array([[0, 2], [1, 2]], np.int32),
        columns=windows // 2,
        **sizes,
    )
    add("resample", ["c2"], ["c3"], rows=floats(6, 2), columns=floats(3, 3))
    starts = {"row_starts": np.array([0, 4, 1, 2, 3, 0], np.int32), "column_starts": np.array([1, 0, 1], np.int32)}
    add("resize", ["c3"], ["c33"], row_weights=floats(6, 2), column_weights=floats(3, 2), **starts)
    add("normalize", ["c33"], ["c4"], {"eps": 1e-5, "center": True})
    add("absmax", ["c4"], ["c44"], {"over": "channels", "levels": 7, "smallest": 1e-5})
    add("combine", ["c4", "c44"], ["c45"], {"kind": "divide"})
    add("permute", ["c45"], ["c5"], {"split": [2, 4, 6, 3], "order": [1, 2, 3, 0], "shape": [4, 6, 6]})
    add("matmul", ["c5", "c5"], ["c55"])
    add("combine", ["c5", "c55"], ["c56"], {"kind": "maximum"})
    add("by_place", ["c56"], ["c6"], {"kind": "multiply"}, value=floats(6, 1, 4))
    add("softmax", ["c6"], ["c7"], {"log": True})
    add("select", ["c"], ["c8"], channels=np.array([7, 5, 3, 1], np.int32))
    add("combine", ["c7", "c8"], ["y"], {"kind": "add"})
    outputs = [("w", (5,)), ("y", (4, 6, 6))]
    cache = StateSpec((5, 2, 3))
    states = [StateSpec((1,), 0.0, 1.0), cache, cache, StateSpec((6,), 1.0, 0.0, "rr")]
    return bk.PackedModel([(4, 6, 6), (3,)], w.steps, {"model": "Rich"}, {"torch": "0"}, outputs, states=states)


def rich_inputs(n=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 4, 6, 6)).astype(np.float32), rng.standard_normal((n, 3)).astype(np.float32)
