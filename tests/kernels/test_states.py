"""Packed networks that compute step by step: what a state becomes, attention to a cache, files, and mistakes."""

import json

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.model import file_format
from bnn_kernels.model.state import StateSpec
from rich_plan import rich_inputs, rich_model


def attention_model(context, heads, features):
    """One token's query, key and value in one input (3, heads, features)."""
    steps, places = [], np.arange(3 * heads * features, dtype=np.int32).reshape(3, -1)
    for name, channels in zip("qkv", places, strict=True):
        steps.append(bk.StepSpec("select", ["x"], [f"{name}1"], {}, {"channels": channels}))
        steps.append(bk.StepSpec("reshape", [f"{name}1"], [name], {"shape": [1, heads, features]}))
    steps.append(bk.StepSpec("cached_attention", ["q", "k", "v", "x2", "x3", "x1"], ["y"]))
    cache = StateSpec((context, heads, features))
    return bk.PackedModel((3 * heads * features,), steps, states=[StateSpec((1,), 0.0, 1.0), cache, cache])


def attention(query, key, value):
    """The last token's, float64 (N, heads, features) of query (N, H, F) and keys and values (N, T, H, F)."""
    scores = np.einsum("nhf,nthf->nht", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nht,nthf->nhf", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("batch", "context", "heads", "features"),
    [(1, 1, 1, 1), (2, 15, 3, 5), (3, 16, 2, 4), (1, 17, 1, 16), (2, 33, 4, 7), (1, 70, 2, 17)],
)
def test_attention_to_a_cache(threads, batch, context, heads, features):
    rng, before = np.random.default_rng(0), bk.get_num_threads()
    model = attention_model(context, heads, features)
    assert model.most_steps == context
    x = rng.standard_normal((batch, context, 3, heads, features)) * 2
    state = model.start(batch)
    bk.set_num_threads(threads)
    try:
        for t in range(context):
            found = model.step(x[:, t].reshape(batch, -1), state)
            expected = attention(x[:, t, 0], x[:, : t + 1, 1], x[:, : t + 1, 2])
            np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    finally:
        bk.set_num_threads(before)
    kept = {name: array.copy() for name, array in state.registers.items()}
    with pytest.raises(ValueError, match=f"the state has taken {context} steps, and the model can take no more"):
        model.step(x[:, 0].reshape(batch, -1), state)
    assert all(np.array_equal(kept[name], array) for name, array in state.registers.items())


def test_a_place_that_is_none_stays_within_the_cache():
    steps = [bk.StepSpec("cached_attention", ["x", "x", "x", "x2", "x3", "x1"], ["y"])]
    cache = StateSpec((4, 1, 2))
    for add in (-5.0, 1 << 20):
        model = bk.PackedModel((1, 1, 2), steps, states=[StateSpec((1,), 0.0, add), cache, cache])
        state = model.start(1)
        for _ in range(4):
            if model.most_steps is None:
                found = model.step(np.ones((1, 1, 1, 2)), state)
                np.testing.assert_allclose(found, 1)
    state.registers["x1"][:] = np.nan
    np.testing.assert_allclose(model.step(np.ones((1, 1, 1, 2)), state), 1)


def rotating_model():
    """States a (2,) and b (2,): a becomes b, b becomes a + x; y is the new b."""
    steps = [bk.StepSpec("combine", ["x", "x1"], ["y"], {"kind": "add"})]
    return bk.PackedModel((2,), steps, states=[StateSpec((2,), 1.0, 0.0, "x2"), StateSpec((2,), 10.0, 0.0, "y")])


def test_states_become_what_a_step_computes():
    model = rotating_model()
    assert model.most_steps is None
    state, a, b = model.start(3), np.full((3, 2), 1.0), np.full((3, 2), 10.0)
    for seed in range(7):
        x = np.random.default_rng(seed).integers(0, 9, (3, 2)).astype(np.float32)
        a, b = b, a + x
        np.testing.assert_array_equal(model.step(x, state), b)
        np.testing.assert_array_equal([state.registers["x1"], state.registers["x2"]], [a, b])
        # Calls have states of their own.
        np.testing.assert_array_equal(model(x), x + 1)
    assert state.length == 7
    twin = state.copy()
    ones = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(model.step(ones, twin), a + 1)
    np.testing.assert_array_equal(model.step(ones, state), a + 1)
    assert (twin.length, state.length) == (8, 8)
    state.reset()
    np.testing.assert_array_equal(model.step(ones, state), ones + 1)
    assert state.length == 1


def test_several_states_at_a_time_and_any_batch():
    """Steps in turn, recorded or not, are those of each state alone."""
    model, alone = rich_model(), rich_model()
    states = [model.start(n) for n in (1, 3, 3)]
    inputs = [[rich_inputs(state.batch, seed) for seed in range(5)] for state in states]
    found = [[model.step(*inputs[i][k], state) for i, state in enumerate(states)] for k in range(5)]
    for i, made in enumerate(zip(*found, strict=True)):
        state = alone.start(states[i].batch)
        for k, y in enumerate(made):
            for ours, theirs in zip(y, alone.step(*inputs[i][k], state), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="has taken 5 steps"):
        model.step(*inputs[0][0], states[0])


def test_a_file_keeps_states(tmp_path):
    model = rich_model()
    model.save(tmp_path / "model.safetensors")
    loaded = bk.load(tmp_path / "model.safetensors")
    assert loaded.states == model.states
    a, b = model.start(2), loaded.start(2)
    for seed in range(4):
        for ours, theirs in zip(
            model.step(*rich_inputs(2, seed), a), loaded.step(*rich_inputs(2, seed), b), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


CACHE, COUNT = StateSpec((4, 1, 2)), StateSpec((1,), 0.0, 1.0)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "reads 'x2', which no earlier step writes"),
        ([COUNT, CACHE, StateSpec((4, 1, 2), output="x2")], "changes 'x2' in place, which something else reads"),
        ([COUNT, CACHE, StateSpec((4, 1, 2), add=1)], "changes 'x3' in place, which is no state that is kept"),
        ([COUNT, CACHE, CACHE, StateSpec((4, 1, 2), output="x3")], "changes 'x3' in place, which something else reads"),
        ([COUNT, CACHE, CACHE, StateSpec((3,), output="z")], "is to be 'z', which no step writes"),
        ([COUNT, CACHE, CACHE, StateSpec((3,), output="y")], "has the shape"),
        ([COUNT, CACHE, StateSpec((5, 1, 2))], "do not fit"),
        ([StateSpec((2,)), CACHE, CACHE], "the place is one number"),
        ([StateSpec((1,), float("nan")), CACHE, CACHE], "'initial' of a state must be a number"),
        ([StateSpec((1,), 0.0, 0.5), CACHE, CACHE], "counted up by whole numbers, not 0.5"),
        ([StateSpec((1,), 0.0, 1.0, "y"), CACHE, CACHE], "counted up or written by a step, not both"),
        ([StateSpec((1, 0)), CACHE, CACHE], "state shape must be"),
        ([(1,), CACHE, CACHE], "states must be StateSpecs"),
    ],
)
def test_plans_whose_states_do_not_fit_are_refused(states, words):
    steps = [bk.StepSpec("cached_attention", ["x", "x", "x", "x2", "x3", "x1"], ["y"])]
    with pytest.raises(bk.PlanError, match=words):
        bk.PackedModel((1, 1, 2), steps, states=states)


def test_a_file_with_a_malformed_state_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for wrong in (3, {"shape": [1]}, {"shape": 3, "initial": 0, "add": 0, "output": ""}):
        model = rotating_model()
        model.save(path)
        header, tensors = file_format.read(path)
        header["states"][0] = wrong
        file_format.write(path, json.loads(json.dumps(header)), tensors)
        with pytest.raises(bk.PackedFileError, match="malformed header"):
            bk.load(path)


def test_mistakes_with_states_are_named():
    model, other = rotating_model(), rotating_model()
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="the state is one of another model"):
        model.step(x, other.start(3))
    with pytest.raises(ValueError, match="the state is of 2 sequences, the input of 3"):
        model.step(x, model.start(2))
    with pytest.raises(TypeError, match=r"a state that start\(\) gave, got ndarray"):
        model.step(x, x)
    with pytest.raises(TypeError, match="takes inputs and, last, a state that start"):
        model.step()
    with pytest.raises(ValueError, match="batch"):
        model.start(0)
    plain = bk.PackedModel((2,), [bk.StepSpec("activation", ["x"], ["y"], {"kind": "tanh"})])
    with pytest.raises(ValueError, match=r"the model has no states: only those that bnn\.convert_step makes"):
        plain.start()
    with pytest.raises(ValueError, match="a decoder takes one token"):
        model.generate(np.zeros((1, 1), np.int64), 1)
    with pytest.raises(ValueError, match="with T >= 1"):
        model.generate(np.zeros((1, 0), np.int64), 1)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        bigram().generate(np.zeros((1, 1), np.int64), 1, -1.0)


def bigram(classes=5, seed=0):
    """The logits of the next token are a row of a table, and no state counts."""
    table = np.random.default_rng(seed).standard_normal((classes, classes)).astype(np.float32)
    steps = [
        bk.StepSpec("embedding", ["x"], ["a"], {"shape": [classes, classes]}, {"weight": table}),
        bk.StepSpec("reshape", ["a"], ["y"], {"shape": [classes]}),
    ]
    return bk.PackedModel((1,), steps, states=[StateSpec((1,), 0.0, 1.0)])


def test_tokens_are_drawn_from_the_softmax():
    model = bigram()
    table = np.asarray(model.steps[0].tensors["weight"], np.float64)
    tokens = np.full((4000, 1), 2)
    drawn = model.generate(tokens, 1, 0.7, np.random.default_rng(1))[:, 1]
    assert np.array_equal(drawn, model.generate(tokens, 1, 0.7, np.random.default_rng(1))[:, 1])
    chances = np.exp(table[2] / 0.7) / np.exp(table[2] / 0.7).sum()
    counts = np.bincount(drawn, minlength=5)
    assert (np.abs(counts - 4000 * chances) < 4.5 * np.sqrt(4000 * chances * (1 - chances)) + 1).all()
    best = model.generate(tokens[:1], 6)[0]
    assert np.array_equal(best[1:], table[best[:-1]].argmax(1))
