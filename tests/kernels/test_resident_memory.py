"""What a loaded network holds in memory: a process that runs one is asked from outside, beside one with a tiny twin."""

import subprocess
import sys
from pathlib import Path

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.bits.storage import to_dense_bits
from bnn_kernels.compile.isa import isa

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

SIGNS = {"signed": True, "multipliers": [1]}
# Resident bytes for each byte of the file.
MOST = 1.3
# Loads a model and runs it on one image, first step by step, then recorded, then played back; then waits.
PROGRAM = """
import sys
import numpy as np, bnn_kernels as bk
from bnn_kernels.model import warm
bk.set_num_threads(1)
with warm.compilations() as found:
    model = bk.load(sys.argv[1])
    x = np.random.default_rng(0).standard_normal((1, *model.input_shape)).astype(np.float32)
    results = [model(x) for _ in range(3)]
assert np.array_equal(results[0], results[2])
print("ready", found.count, flush=True)
sys.stdin.read()
"""


def planes(bits):
    """Return the planes of weights: of signs, ternary (t), or of `bits` in two's complement."""
    if bits == "1":
        return SIGNS
    powers = [1 << p for p in range(int(bits) - 1)] if bits != "t" else [1]
    return {"signed": False, "multipliers": [*powers, -powers[-1] if bits == "t" else -2 * powers[-1]]}


def network(kind, weights, inputs, channels, layers):
    """Return a chain of layers of one kind ("conv", 3x3 on 7x7 maps, or "linear") between quantizers."""
    rng = np.random.default_rng(0)
    convolves, levels = kind == "conv", inputs not in ("1", "32")
    attribute = {"factor": 0.5, "divides": True, "low": 0, "high": 2 ** int(inputs) - 1, "bits": int(inputs)}

    def floats(*shape):
        return np.abs(rng.standard_normal(shape)).astype(np.float32)

    steps, register = [], "x"
    if inputs != "32":
        signs = {"thresholds": floats(1, 1), "flip": np.zeros(1, bool), "codes": np.array([1, 0], np.uint8)}
        attrs, tensors = ({"levels": attribute}, {}) if levels else (SIGNS, signs)
        steps.append(bk.StepSpec("pack", [register], ["packed"], attrs, tensors))
        register = "packed"
    for i in range(layers):
        shape = (channels, channels, 3, 3) if convolves else (channels, channels)
        attrs = {"shape": list(shape)}
        if convolves:
            attrs |= {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
            attrs |= {"pad_value": 0.0} if inputs == "32" else {"pad_level": 0}
        tensors = {"norm_scale": floats(channels), "norm_shift": floats(channels)}
        if weights == "32":
            tensors["weight"] = floats(*shape) / channels
        else:
            term = planes(weights)
            count = 3 if weights == "t" else 1 << len(term["multipliers"])
            attrs["terms"] = [term]
            codes = rng.integers(0, count, shape, np.uint8)
            tensors |= {
                "bits.0": to_dense_bits(codes, len(term["multipliers"])),
                "scale.0": floats(channels) / channels,
            }
        if inputs != "32":
            attrs["output"] = "float"
        if inputs != "32" and i < layers - 1:
            attrs |= {"keep": False} | ({"levels": attribute} if levels else {})
            if not levels:
                tensors |= {"bounds": floats(channels), "flip": np.zeros(channels, bool)}
        op = f"{'float' if inputs == '32' else 'binary'}_{kind}"
        steps.append(bk.StepSpec(op, [register], [f"r{i}"], attrs, tensors))
        register = f"r{i}"
    return bk.PackedModel((channels, 7, 7) if convolves else (channels,), steps)


def resident_bytes(path, tries=3):
    """Return the bytes, anonymous or of files, that are resident in a process that has run the model of a file."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        ready, compiled = process.stdout.readline().split()
        assert ready == "ready"
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.communicate()
    if compiled != "0":  # by a process that finds everything in the cache
        assert tries > 1, "the cache of kernels keeps nothing"
        return resident_bytes(path, tries - 1)
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return sum(1024 * int(lines[name].split()[0]) for name in ("RssAnon", "RssFile"))


def run_thrice(model):
    before = bk.get_num_threads()
    bk.set_num_threads(1)
    try:
        for _ in range(3):
            model(np.ones((1, *model.input_shape), np.float32))
    finally:
        bk.set_num_threads(before)


def ratio(folder, kind, weights, inputs):
    """Return the resident bytes that a network of 20 MB adds to a tiny one's, for each byte of its file."""
    channels = 512 if kind == "conv" else 2048
    bits = channels**2 * (9 if kind == "conv" else 1) * (2 if weights == "t" else int(weights))
    network(kind, weights, inputs, channels, max(2, 160_000_000 // bits)).save(folder / "model")
    twin = network(kind, weights, inputs, 64, 2)
    twin.save(folder / "twin")
    run_thrice(twin)  # what is compiled here need not be compiled by a process that is asked once more
    more = resident_bytes(folder / "model") - resident_bytes(folder / "twin")
    return more / (folder / "model").stat().st_size


@pytest.mark.parametrize("case", ["conv 2/2", "linear 1/32"])
def test_a_loaded_network_is_as_small_as_its_file(case, tmp_path):
    kind, widths = case.split()
    assert ratio(tmp_path, kind, *widths.split("/")) < MOST


WIDTHS = ["1/1", "t/1", "1/2", "2/2", "t/2", "3/3", "4/4", "4/8", "8/8", "1/8", "t/8"]
WIDTHS += ["1/32", "t/32", "3/32", "4/32", "5/32", "8/32", "32/32"]


@pytest.mark.slow
@pytest.mark.skipif(isa() not in ("avx512", "avx2"), reason="16-bit products hold a byte for a weight of any width")
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_networks_of_every_width_are_as_small_as_their_files(kind, widths, tmp_path):
    # Products of bytes hold 3 bits in 4.
    most = MOST * 4 / 3 if widths == "3/3" else MOST
    assert ratio(tmp_path, kind, *widths.split("/")) < most


def test_tensors_of_a_loaded_model_cannot_be_written_to(tmp_path):
    network("linear", "t", "32", 32, 2).save(tmp_path / "model")
    tensor = bk.load(tmp_path / "model").steps[0].tensors["bits.0"]
    with pytest.raises(ValueError, match="read-only"):
        tensor[...] = 0
