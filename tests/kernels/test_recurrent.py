"""The step of recurrent layers against plain formulas in float64, with weights of floats and of few bits."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.planes import level_of_code
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.ops.recurrent import GATES


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(kind, given, weight, bias, h, c, backwards):
    """Return (N, T (+ 1), H) in float64: the hidden states at all places, and an LSTM's last cell."""
    n, places, rows = given.shape
    count = rows // GATES[kind]
    out = np.empty((n, places + (kind == "lstm"), count))
    for place in reversed(range(places)) if backwards else range(places):
        x, u = np.split(given[:, place], GATES[kind], 1), np.split(h @ weight.T + bias, GATES[kind], 1)
        if kind == "lstm":
            i, f, o = (sigmoid(x[k] + u[k]) for k in (0, 1, 3))
            c = f * c + i * np.tanh(x[2] + u[2])
            h = o * np.tanh(c)
        elif kind == "gru":
            r, z = (sigmoid(x[k] + u[k]) for k in (0, 1))
            h = (1 - z) * np.tanh(x[2] + r * u[2]) + z * h
        else:
            h = np.tanh(x[0] + u[0]) if kind == "rnn_tanh" else np.maximum(x[0] + u[0], 0)
        out[:, place] = h
    if kind == "lstm":
        out[:, places] = c
    return out


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def stored(rng, shape, multipliers):
    """Return a weight in float64, and how a file holds it: float32, or bits and a scale of each row."""
    if multipliers is None:
        weight = floats(rng, *shape) / np.float32(np.sqrt(shape[1]))
        return weight.astype(np.float64), {}, {"weight": weight}
    codes = rng.integers(0, 1 << len(multipliers), shape).astype(np.uint8)
    signed = multipliers == (1,)
    scale = (rng.random(shape[0]).astype(np.float32) + 1) / np.float32(sum(map(abs, multipliers)) * np.sqrt(shape[1]))
    attrs = {"terms": [{"multipliers": list(multipliers), "signed": signed}]}
    weight = level_of_code(multipliers, signed)[codes] * scale[:, None].astype(np.float64)
    return weight, attrs, {"bits.0": to_dense_bits(codes, len(multipliers)), "scale.0": scale}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(
    ("hidden", "multipliers"),
    [(1, None), (5, None), (16, None), (70, None), (9, (1,)), (33, (1, -1)), (20, (1, 2, 4, -8))],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_against_the_formulas(kind, hidden, multipliers, backwards):
    rng = np.random.default_rng(hidden)
    n, places, rows = 3, 6, GATES[kind] * hidden
    weight, attrs, tensors = stored(rng, (rows, hidden), multipliers)
    bias = floats(rng, rows)
    step = bk.StepSpec(
        "recurrent", ["x"], ["y"], {"kind": kind, "shape": [rows, hidden], "backwards": backwards, **attrs},
        {"bias": bias, **tensors},
    )  # fmt: skip
    x = floats(rng, n, rows, places)
    model = bk.PackedModel((rows, places), [step])
    expected = reference(
        kind, x.transpose(0, 2, 1).astype(np.float64), weight, bias, np.zeros((n, hidden)), 0, backwards
    )
    for _ in range(3):  # the third call is played back
        found = model(x)[:, :, 0].transpose(0, 2, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    assert model.costs()[0].macs == rows * hidden * places
    assert model.costs()[0].precision == f"W{32 if multipliers is None else len(multipliers)}A32"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("given", [(), ("hidden",), ("cell",), ("hidden", "cell")])
def test_first_states_are_inputs_or_constants(kind, given):
    if kind == "gru" and "cell" in given:
        return
    rng = np.random.default_rng(0)
    n, places, hidden = 2, 3, 7
    rows = GATES[kind] * hidden
    weight, _, tensors = stored(rng, (rows, hidden), None)
    names = ["hidden", "cell"] if kind == "lstm" else ["hidden"]
    states = {name: floats(rng, n, hidden) if name in given else floats(rng, hidden) for name in names}
    attrs = {"kind": kind, "shape": [rows, hidden], **{f"takes_{name}": True for name in given}}
    tensors |= {name: states[name] for name in names if name not in given}
    x = floats(rng, n, rows, places)
    registers = ["x", "x1", "x2"][: 1 + len(given)]
    model = bk.PackedModel(
        [(rows, places), *[(hidden,)] * len(given)], [bk.StepSpec("recurrent", registers, ["y"], attrs, tensors)]
    )
    h, c = (np.broadcast_to(states.get(name, 0), (n, hidden)).astype(np.float64) for name in ("hidden", "cell"))
    expected = reference(kind, x.transpose(0, 2, 1).astype(np.float64), weight, 0, h, c, False)
    found = model(x, *[states[name] for name in names if name in given])[:, :, 0].transpose(0, 2, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_an_image_gets_the_same_numbers_in_any_batch_and_with_any_threads():
    rng = np.random.default_rng(3)
    hidden, places = 24, 5
    _, attrs, tensors = stored(rng, (4 * hidden, hidden), (1, -1))
    step = bk.StepSpec("recurrent", ["x"], ["y"], {"kind": "lstm", "shape": [4 * hidden, hidden], **attrs}, tensors)
    model = bk.PackedModel((4 * hidden, places), [step])
    x = floats(rng, 9, 4 * hidden, places)
    alone = np.concatenate([model(one[None]) for one in x])
    before = bk.get_num_threads()
    for threads in (1, 2):
        bk.set_num_threads(threads)
        np.testing.assert_array_equal(model(x), alone)
    bk.set_num_threads(before)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"kind": "elman"}, "unknown kind 'elman'"),
        ({"shape": [5, 2]}, "is none of 'gru'"),
        ({"takes_cell": True}, "only an LSTM has cells"),
        ({"takes_hidden": True}, "takes 2 inputs, got 1"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changed, match):
    attrs = {"kind": "gru", "shape": [6, 2], **changed}
    tensors = {"weight": np.zeros(attrs["shape"], np.float32)}
    with pytest.raises(bk.PlanError, match=match):
        bk.PackedModel((6, 4), [bk.StepSpec("recurrent", ["x"], ["y"], attrs, tensors)])


def test_outputs_have_their_batch_where_the_plan_says(tmp_path):
    step = bk.StepSpec("reshape", ["x"], ["y"], {"shape": [2, 1, 3]}, {})
    model = bk.PackedModel((6,), [step], outputs=[("y", (2, 3)), ("y", (2, 3))], batch_axes=[1, 0])
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    model.save(tmp_path / "moved.safetensors")
    for made in (model, bk.load(tmp_path / "moved.safetensors")):
        moved, plain = made(x)
        np.testing.assert_array_equal(plain, x.reshape(4, 2, 3))
        np.testing.assert_array_equal(moved, x.reshape(4, 2, 3).transpose(1, 0, 2))
    assert "(2, N, 3), (N, 2, 3)" in repr(model)
    with pytest.raises(bk.PlanError, match="axis 3 is none of an output"):
        bk.PackedModel((6,), [step], outputs=[("y", (2, 3))], batch_axes=[3])
