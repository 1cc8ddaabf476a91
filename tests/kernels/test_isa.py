"""The choice of a kernel by CPU features."""

import os
import re
import subprocess
import sys
import types

import bnn_kernels as bk
import llvmlite.binding as llvm
import pytest
from bnn_kernels.compile import isa
from bnn_kernels.compile.isa import has

CODE = "import bnn_kernels as bk; print(bk.cpu_features()['isa'])"


def chosen(**environment):
    return subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_the_first_possible_path_is_taken():
    features = bk.cpu_features()
    assert features["isa"] == os.environ.get("BNN_KERNELS_ISA", features["possible"][0])
    assert features["possible"][-1] == "generic"


def test_impossible_paths_are_refused():
    assert "must be one of avx512, avx2, neon, generic, got 'sse9'" in chosen(BNN_KERNELS_ISA="sse9").stderr
    absent = next(path for path in isa.PATHS if path not in bk.cpu_features()["possible"])
    assert f"BNN_KERNELS_ISA={absent} needs" in chosen(BNN_KERNELS_ISA=absent).stderr


@pytest.mark.parametrize(
    ("features", "path"),
    [("", "generic"), ("+avx2", "avx2"), ("+avx2,+avx512f,+avx512vpopcntdq", "avx512"), ("+neon", "neon")],
)
def test_the_compilers_features_decide(features, path, monkeypatch):
    monkeypatch.setattr(isa.config, "CPU_NAME", "generic")
    monkeypatch.setattr(isa.config, "CPU_FEATURES", features)
    monkeypatch.delenv("BNN_KERNELS_ISA", raising=False)
    isa._features.cache_clear()
    isa.isa.cache_clear()
    try:
        assert isa.isa() == path
    finally:
        isa._features.cache_clear()
        isa.isa.cache_clear()


# Which kernels a layer with 64 filters, of signs, 2-bit and 8-bit inputs, runs on each path.
RUNS = """
import re, sys
import numpy as np, bnn_kernels as bk
from numba.core.caching import NullCache
from bnn_kernels.ops.binary_conv import level_lookup, lookup, popcount
from bnn_kernels.ops.integer_conv import products
ran = []
run_rows = popcount.run_rows
def note(kernel, *args, **more):
    if sys.argv[1:] and re.match(sys.argv[1], kernel.__name__):
        kernel._cache = NullCache()  # machine code from a cache cannot be looked into
        run_rows(kernel, *args, **more)
    ran.append(kernel)
for module in (popcount, lookup, level_lookup, products):
    module.run_rows = note
conv = bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32), padding=1)
for planes, signed in (((1,), True), ((1, 2), False), (tuple(1 << p for p in range(8)), False)):
    conv(bk.BitTensor(np.ones((len(planes), 1, 6, 6, 1), np.uint64), (1, 64, 6, 6), signed, planes))
print(bk.cpu_features()["isa"])
for kernel in ran:
    look = sys.argv[1:] and re.match(sys.argv[1], kernel.__name__)
    code = "".join(kernel.inspect_asm().values()) if look else ""
    found = [name for name in ("vpopcnt", "pshufb", "vpdpbusd", "vpmaddubsw") if re.search(rf"\\b{name}|v{name}", code)]
    print(kernel.__name__, ",".join(found))
"""
PRODUCTS = "multiply_vnni16_1_to_ints" if has("avx512vnni") else "multiply_shorts16_8_to_ints"
NARROW_PRODUCTS = "multiply_vnni8_1_to_ints" if has("avxvnni") else "multiply_pairs8_1_to_ints"
# From how many bits on it multiplies was measured: with VNNI from two, on Zen 4 from three.
COUNTS_TWO = not has("avx512vnni") or bk.cpu_features()["cpu"] == "znver4"
TWO_BITS = "popcount_of_pairs_xor_many_8x2_to_ints" if COUNTS_TWO else PRODUCTS
KERNELS = {
    "avx512": ["popcount_of_pairs_xor_one_8x2_to_ints", TWO_BITS, PRODUCTS],
    "avx2": [
        "lookup_to_ints",
        "level_lookup_to_ints",
        f"multiply_{'vnni8_1' if has('avxvnni') else 'pairs8_1'}_to_ints",
    ],
    "generic": ["popcount_xor_one_4x1_to_ints", *["popcount_xor_many_4x1_to_ints"] * 2],
}
# What the machine code of a kernel must have, and must not have, by the beginning of its name.
INSTRUCTIONS = {
    "lookup": "pshufb",
    "level_lookup": "pshufb",
    "multiply_vnni": "vpdpbusd",
    "multiply_pairs": "vpmaddubsw",
}


def kernels_that_run(path, *looked_into):
    """{name: its instructions} of the kernels; "" but of those whose names this pattern fits."""
    environment = {**os.environ, "BNN_KERNELS_ISA": path, "BNN_KERNELS_COSTS": "built-in"}
    command = [sys.executable, "-c", RUNS, *looked_into]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    forced, *lines = done.stdout.splitlines()
    assert forced == path
    lines = [line.split(" ") for line in lines]
    assert [name for name, _ in lines] == KERNELS.get(path, [name for name, _ in lines])
    return dict(lines)


@pytest.mark.parametrize("path", bk.cpu_features()["possible"])
def test_a_path_can_be_forced_and_is_what_runs(path):
    kernels_that_run(path)


# What is not quick is looked for by tests/kernels/test_assembly.py too; of portable instructions any will do.
@pytest.mark.parametrize(
    ("path", "kernels"),
    [
        ("avx2", "lookup"),
        pytest.param("avx2", "level_lookup|multiply", marks=pytest.mark.slow),
        pytest.param("avx512", "", marks=pytest.mark.slow),
    ],
)
def test_the_instructions_are_those_of_the_path(path, kernels):
    if path not in bk.cpu_features()["possible"]:
        pytest.skip(f"needs {path}")
    found = {name: code for name, code in kernels_that_run(path, kernels).items() if re.match(kernels, name)}
    assert found
    for name, instructions in found.items():
        wanted = [instruction for start, instruction in INSTRUCTIONS.items() if name.startswith(start)]
        if path == "avx512" and name.startswith("popcount"):
            wanted.append("vpopcnt")
        assert all(instruction in instructions for instruction in wanted)
        assert path != "avx2" or "vpopcnt" not in instructions


@pytest.mark.parametrize(("cpu", "named"), [(None, False), ("cortex-a72", True)])
def test_arm_features_that_llvm_does_not_look_for(cpu, named, monkeypatch):
    """Of an ARM CPU with dotprod and without i8mm, unless the user names a CPU or there is a compiler already."""
    entries = {16: 1 << 1 | 1 << 20, 26: 0}
    for place, name, value in (
        (isa.platform, "machine", lambda: "aarch64"),
        (isa.ctypes, "CDLL", lambda name: types.SimpleNamespace(getauxval=Getauxval(entries.get))),
        (isa.llvm, "get_host_cpu_features", lambda: llvm.FeatureMap({"crc": True, "sve": False})),
        (isa.config, "CPU_NAME", cpu),
        (isa.config, "CPU_FEATURES", None),
        (isa, "cpu_target", types.SimpleNamespace()),
    ):
        monkeypatch.setattr(place, name, value)
    isa.complete_features_on_arm()
    expected = None if named else "+crc,-sve,+neon,+dotprod"
    assert expected == isa.config.CPU_FEATURES
    monkeypatch.setattr(isa.config, "CPU_FEATURES", None)
    isa.cpu_target._toplevel_target_context = object()
    isa.complete_features_on_arm()
    assert isa.config.CPU_FEATURES is None


class Getauxval:
    def __init__(self, read):
        self.read = read

    def __call__(self, entry):
        return self.read(entry)
