"""What a file holds of each step: constructors, checks and files know the same names; files of before still load."""

import inspect
from pathlib import Path

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.ops.epilogue import Epilogue
from bnn_kernels.steps.base import STEPS
from bnn_kernels.steps.finish import EpilogueFields
from bnn_kernels.steps.pack import Pack, Unpack
from bnn_kernels.steps.shape import Reshape
from rich_plan import rich_inputs, rich_model

OLD = Path(__file__).parent / "data" / "rich_of_2026_11_24.safetensors"
# Steps that are newer than that file.
LATER = {"resize", "level_matmul", "cached_attention", "recurrent"}
# Parameters that are several tensors, and their names in a file before the number.
NUMBERED = {"bits": "bits", "scales": "scale"}


def test_steps_made_by_constructors_pass_their_checks_and_files(tmp_path):
    """All steps of the rich plan, made again by the constructors from what they are read as."""
    model = rich_model()
    steps, seen = [], set()
    for step in model.steps:
        kind = STEPS[step.op].Fields
        read = kind.read(step.attrs, step.tensors)
        names = inspect.signature(kind).parameters
        made = kind(**{name: getattr(read, name) for name in names}).spec(step.inputs, step.outputs, step.sources)
        stored = {*made.attrs, *(name.partition(".")[0] for name in made.tensors)}
        assert stored <= {NUMBERED.get(name, name) for name in names}, step.op
        assert made.tensors.keys() == step.tensors.keys()
        assert all(step.attrs[name] == value for name, value in made.attrs.items())
        steps.append(made)
        seen.add(step.op)
    assert seen == set(STEPS)
    outputs = [("w", (5,)), ("y", (4, 6, 6))]
    again = bk.PackedModel([(4, 6, 6), (3,)], steps, outputs=outputs, states=model.states)
    again.save(tmp_path / "again.safetensors")
    loaded = bk.load(tmp_path / "again.safetensors")
    for found, made in zip(loaded.steps, steps, strict=True):
        assert (found.op, found.inputs, found.outputs, found.attrs) == (made.op, made.inputs, made.outputs, made.attrs)
        assert all(np.array_equal(found.tensors[name], tensor) for name, tensor in made.tensors.items())
    for found, expected in zip(loaded(*rich_inputs()), model(*rich_inputs()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_epilogue_has_one_vocabulary():
    """What a step may say of its epilogue is what the epilogue takes; its scale is the layer's own.

    `keep` is an argument of a call, and `exact` is for the parity report. `as_bytes` is no matter of a file.
    """
    told = {one.name for one in EpilogueFields.declared()} - {"keep", "exact"} | {"scale"}
    assert told == set(inspect.signature(Epilogue).parameters) - {"channels", "as_bytes"}


def test_a_field_at_its_default_is_not_written():
    assert Unpack.Fields(scale=1.0).spec(["a"], ["b"]) == bk.StepSpec("unpack", ["a"], ["b"], {"scale": 1.0})
    assert Reshape.Fields(shape=[4]).tensors() == {}
    fields = STEPS["elementwise"].Fields
    assert fields(channels=2, high=6.0).attrs() == {"channels": 2, "high": 6.0}


PACK = {"thresholds": np.zeros((1, 1), np.float32), "flip": np.zeros(1, bool), "codes": np.array([1, 0], np.uint8)}
SIGNS = {"signed": True, "multipliers": [1]}


@pytest.mark.parametrize(
    ("attrs", "tensors", "words"),
    [
        (SIGNS | {"colour": 1}, PACK, r"unknown attributes \['colour'\]"),
        (SIGNS, PACK | {"weight": PACK["codes"]}, "unknown tensor 'weight'"),
        ({"signed": True}, PACK, "'multipliers' must be a list, got None"),
        (SIGNS | {"multipliers": [True]}, PACK, "malformed number True"),
        (SIGNS | {"signed": 1}, PACK, "'signed' must be bool, got 1"),
        (SIGNS, {"flip": PACK["flip"], "codes": PACK["codes"]}, "tensor 'thresholds' is missing"),
        (SIGNS, PACK | {"codes": np.zeros(2, np.int64)}, "tensor 'codes' must be uint8, got int64"),
        (SIGNS, PACK | {"thresholds": np.full((1, 1), np.nan, np.float32)}, "'thresholds' holds a NaN"),
    ],
)
def test_what_is_read_is_checked(attrs, tensors, words):
    with pytest.raises(bk.PlanError, match=words):
        Pack(attrs, tensors)


def test_terms_have_a_tensor_each():
    """A gap in their numbers is no end."""
    fields = STEPS["float_linear"].Fields
    term = {"multipliers": [1], "signed": True}
    bits = np.zeros((1, 1), np.uint8)
    with pytest.raises(bk.PlanError, match=r"unknown tensor 'bits\.2'"):
        fields.read({"shape": [1, 8], "terms": [term] * 2}, {"bits.0": bits, "bits.2": bits})


def test_a_file_of_before_gives_its_answers():
    """Every kind of step of 2026-11-24, written on that day, with its answers."""
    model = bk.load(OLD)
    assert {step.op for step in model.steps} == set(STEPS) - LATER
    with np.load(OLD.with_suffix(".npz")) as answers:
        for found, name in zip(model(*rich_inputs()), answers.files, strict=True):
            np.testing.assert_allclose(found, answers[name], rtol=1e-4, atol=1e-4)  # sums have another order since
