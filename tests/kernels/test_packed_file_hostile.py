"""Hostile files: whatever is changed, with a checksum that is right again, is refused by name or harmless."""

import copy
import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.model.file_format import digest_of
from rich_plan import rich_inputs, rich_model

# Numbers that break what counts, multiplies or allocates.
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 63, 10**30, 0.5, -1e300, 1e39)
WORDS = (
    "",
    "x",
    "x1",
    "a",
    "d",
    "r",
    "fly",
    "pack",
    "unpack",
    "select",
    "binary_conv",
    "float",
    "bits",
    "int",
    "before",
)


class File:
    """A packed file in pieces that can be changed and put together again with a right checksum."""

    def __init__(self, blob):
        size = int.from_bytes(blob[:8], "little")
        self.table = json.loads(blob[8 : 8 + size])
        self.metadata = self.table.pop("__metadata__")
        self.header = json.loads(self.metadata["header"])
        self.payload = bytearray(blob[8 + size :])

    def to_bytes(self):
        header = json.dumps(self.header)
        digest = digest_of(header, self.table, bytes(self.payload))
        metadata = {**self.metadata, "header": header, "sha256": digest}
        text = json.dumps({"__metadata__": metadata, **self.table}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + bytes(self.payload)


def places(value):
    """All (container, key) within JSON values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def change_value(rng, value):
    container, key = rng.choice(list(places(value)))
    old = container[key]
    kinds = ["replace", "remove", "copy"]
    kind = rng.choice(kinds)
    if kind == "remove":
        del container[key]
    elif kind == "copy" and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(old))
    elif isinstance(old, bool):
        container[key] = rng.choice([not old, None, 1])
    elif isinstance(old, int | float):
        container[key] = rng.choice([*NUMBERS, old + 1, old - 1, old * 2, str(old), None, [old], True])
    elif isinstance(old, str):
        container[key] = rng.choice([*WORDS, old + "x", 3, None])
    else:
        container[key] = rng.choice([None, [], {}, 0, "x", [old]])


def change_header(rng, file):
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        change_value(rng, file.header)


def change_steps(rng, file):
    steps = file.header["steps"]
    i, j = rng.randrange(len(steps)), rng.randrange(len(steps))
    kind = rng.choice(["swap", "shuffle", "remove", "copy", "wire"])
    if kind == "swap":
        steps[i], steps[j] = steps[j], steps[i]
    elif kind == "shuffle":
        rng.shuffle(steps)
    elif kind == "remove":
        del steps[i]
    elif kind == "copy":
        steps.insert(j, copy.deepcopy(steps[i]))
    else:
        steps[i]["inputs"] = [rng.choice(steps[j]["outputs"]) for _ in steps[i]["inputs"]]


def change_shape(rng, file):
    """Enlarge shapes where attributes and the table of tensors agree with each other, or nearly."""
    step = rng.choice([s for s in file.header["steps"] if "shape" in s["attrs"]])
    axis = rng.randrange(len(step["attrs"]["shape"]))
    step["attrs"]["shape"][axis] *= rng.choice([2, 3, 1 << 10, 1 << 20])
    name = rng.choice(list(file.table))
    entry = file.table[name]
    if entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] *= rng.choice([1, 2, 1 << 20])


def change_table(rng, file):
    if rng.random() < 0.2:
        old = rng.choice(list(file.table))
        file.table[old + rng.choice(["", "x"])] = file.table.pop(old)
    change_value(rng, file.table)


def change_numbers(rng, file):
    for _ in range(rng.choice([1, 4, 64])):
        file.payload[rng.randrange(len(file.payload))] = rng.randrange(256)


def mutant(rng, blob):
    kind = rng.choice([change_header] * 3 + [change_steps, change_shape, change_table, change_numbers, None, None])
    if kind is not None:
        file = File(blob)
        kind(rng, file)
        return kind.__name__, file.to_bytes()
    if rng.random() < 0.4:
        return "cut", blob[: rng.randrange(len(blob))]
    changed = bytearray(blob)
    for _ in range(rng.choice([1, 1, 3, 20])):
        # Half of them in the header, which is a small part of larger files.
        end = len(blob) if rng.random() < 0.5 else 64
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return "flip", bytes(changed)


def is_small(model):
    return sum(np.prod(spec.shape, dtype=float) for spec in model.specs.values()) < 1e6


def run_quietly(model):
    """Run what was loaded, step by step, recorded and played: a plan that loads also runs, whatever the numbers."""
    inputs = [np.ones((2, *shape), np.float32) for shape in model.input_shapes]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for _ in range(3):
            try:
                model(*inputs)
            except ValueError as error:
                # Numbers that a changed weight makes, not the plan.
                assert "NaN" in str(error) or "no row of a table" in str(error)


def attack(path, count, seed):
    """Return how many mutants were refused, of each kind."""
    rich_model().save(path)
    blob = path.read_bytes()
    bk.load(path)(*rich_inputs())
    rng = random.Random(seed)
    refused: dict[str, int] = {}
    for number in range(count):
        kind, changed = mutant(rng, blob)
        path.write_bytes(changed)
        tracemalloc.start()
        start = time.process_time()
        try:
            model = bk.load(path)
        except ValueError as error:
            model = None
            assert str(error), (seed, number, kind)
            refused[kind] = refused.get(kind, 0) + 1
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000, f"{kind} {seed}/{number} made loading allocate {peak} bytes"
        assert seconds < 5, f"{kind} {seed}/{number} took {seconds} s"
        if model is not None and is_small(model):
            run_quietly(model)
    return refused


def test_mutants_are_refused_or_harmless(tmp_path):
    refused = attack(tmp_path / "model.safetensors", 150, 0)
    assert refused["flip"] > 10
    assert refused["cut"] > 5
    assert refused["change_header"] > 25
    assert refused["change_steps"] > 5
    assert refused["change_shape"] > 5


@pytest.mark.parametrize("share", [pytest.param(36, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_every_attribute_over_its_range(share, tmp_path):
    """Whatever value stands for an attribute of a step: it is refused when the file is loaded, or the model runs."""
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    blob = path.read_bytes()
    refused = ran = tried = 0
    for index in range(len(File(blob).header["steps"])):
        for number in range(len(list(places(File(blob).header["steps"][index]["attrs"])))):
            for value in (*NUMBERS, -3, -7, 1 << 15, -(1 << 15), 5, 6, 8, True, False, None, [], *WORDS):
                file = File(blob)
                container, key = list(places(file.header["steps"][index]["attrs"]))[number]
                if container[key] == value and type(container[key]) is type(value):
                    continue
                tried += 1
                if tried % share:
                    continue
                container[key] = value
                path.write_bytes(file.to_bytes())
                try:
                    model = bk.load(path)
                except ValueError as error:
                    assert str(error)
                    refused += 1
                    continue
                if is_small(model):
                    run_quietly(model)
                    ran += 1
    assert refused > 2000 / share
    assert ran > 60 / share


def test_a_pad_level_that_the_input_does_not_have(tmp_path):
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    file = File(path.read_bytes())
    step = next(step for step in file.header["steps"] if step["op"] == "binary_conv")
    for level, fits in ((1, True), (-1, True), (7, False), (2, False), (-3, False)):
        step["attrs"]["pad_level"] = level
        path.write_bytes(file.to_bytes())
        if fits:
            run_quietly(bk.load(path))
        else:
            with pytest.raises(bk.PlanError, match=f"'pad_level' {level} is not a level of the input"):
                bk.load(path)


@pytest.mark.slow
def test_ten_thousand_mutants(tmp_path):
    refused = attack(tmp_path / "model.safetensors", 10_000, 1)
    print(refused)
    assert sum(refused.values()) > 7000


def test_every_kind_of_step_survives_a_file(tmp_path):
    from bnn_kernels.steps.base import STEPS

    model = rich_model()
    assert {step.op for step in model.steps} == set(STEPS), "a new kind of step belongs into rich_plan.py"
    model.save(tmp_path / "model.safetensors")
    again = bk.load(tmp_path / "model.safetensors")
    for ours, theirs in zip(again(*rich_inputs()), model(*rich_inputs()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.nbytes == model.nbytes == len(File((tmp_path / "model.safetensors").read_bytes()).payload)


def test_bytes_that_are_no_booleans_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    file = File(path.read_bytes())
    name = next(name for name, entry in file.table.items() if entry["dtype"] == "BOOL")
    file.payload[file.table[name]["data_offsets"][0]] = 2
    path.write_bytes(file.to_bytes())
    with pytest.raises(bk.PlanError, match="neither false nor true"):
        bk.load(path)


def test_names_that_stand_twice_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    text = b'{"a": 1, "a": 2}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(bk.PackedFileError, match="not a packed model"):
        bk.load(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + text)
    with pytest.raises(bk.PackedFileError, match="not a packed model"):
        bk.load(path)


SAVE_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[2])
from rich_plan import rich_model
model = rich_model()
print("ready", flush=True)
while True:
    model.save(sys.argv[1])
"""


def test_a_killed_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    expected = rich_model()(*rich_inputs())[0]
    for number in range(2):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * number)
            process.send_signal(signal.SIGKILL)
        np.testing.assert_array_equal(bk.load(path)(*rich_inputs())[0], expected)


def test_saving_over_a_loaded_model_leaves_it_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    rich_model().save(path)
    loaded = bk.load(path)
    other = rich_model()
    other.steps[0].tensors["weight"][:] = 0
    other.save(path)
    expected = rich_model()(*rich_inputs())[0]
    np.testing.assert_array_equal(loaded(*rich_inputs())[0], expected)
