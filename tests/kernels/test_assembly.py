"""Machine code of the convolution's inner loop: compiled for CPUs other than this one too, but not run there."""

import os
import platform
import re
import subprocess
import sys

import pytest

# Compiles the kernels afresh (machine code from a cache cannot be looked into), takes LLVM's text without what names
# this CPU or only exists on x86 (the count of references, of no interest here), and prints the assembly for another.
PROGRAM = """
import re, sys
import numpy as np, bnn_kernels as bk, llvmlite.binding as llvm
from numba.core.caching import NullCache
from bnn_kernels.ops.binary_conv import popcount
from bnn_kernels.ops.binary_conv.popcount import PopcountPath, popcount_kernel
from bnn_kernels.ops import outputs
from bnn_kernels.ops.integer_conv.form import Form
from bnn_kernels.ops.integer_conv.products import ProductPath, product_kernel
from bnn_kernels.ops.packed_layers import choice
conv = bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32), padding=1)
shorts = Form("shorts", 8, 2, 8)
kernels = (
    popcount_kernel(outputs.IntOutput, "xor", True, False), product_kernel(outputs.IntOutput, shorts),
    popcount_kernel(outputs.IntOutput, "masked", True, False),
)
for kernel in kernels:
    kernel._cache = NullCache()
popcount.FEWEST_SAVED = 10  # words; those counted two at once take instructions of AVX-512
choice.path_for = PopcountPath
bits = bk.pack(np.ones((1, 64, 6, 6), np.float32))
conv(bits)
bk.PackedConv2d.from_levels(np.arange(64 * 64 * 9).reshape(64, 64, 3, 3) % 3 - 1, (1, -1), False, padding=1)(bits)
choice.path_for = lambda *given: ProductPath(*given, shorts)
bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32), padding=1)(bits)
texts = []
for kernel in kernels:
    text = kernel.inspect_llvm(kernel.signatures[0])
    text = re.sub(r'"target-(cpu|features)"="[^"]*"', "", text)
    text = re.sub(r"(?m)^target (triple|datalayout) = .*$", "", text)
    texts.append(re.sub(r"= (tail )?call i8 @llvm\\.x86\\.atomic[^\\n]*", "= add i8 0, 0", text))
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
for machine in sys.argv[1:]:
    triple, cpu, *shown = machine.split(":")
    try:
        target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    except RuntimeError:
        print("no such target\\n=====")
        continue
    for text in (texts[int(place)] for place in shown):
        head = f'target triple = "{triple}"\\ntarget datalayout = "{target.target_data}"\\n'
        print(target.emit_assembly(llvm.parse_assembly(head + text)))
        print("-----")
    print("=====")
"""

# Numba compiles the kernel for another CPU, by its name and features, and nothing that it compiled is run.
PRODUCTS = """
import numpy as np
from numba import int64, typeof
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.integer_conv import levels, products
from bnn_kernels.ops.integer_conv.form import form_for
from bnn_kernels.ops.outputs import IntOutput
from bnn_kernels.ops.weights import Weights
def show(kernel, rows, work, *args):
    signature = (*map(typeof, args), int64, int64)
    kernel.compile(signature)
    print(kernel.__name__)
    print(kernel.inspect_asm(signature))
levels.run_rows, products.run_rows = lambda *given: None, show
planes = tuple(1 << p for p in range(8))
geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1, 0)
maps = Maps((6, 6), (6, 6), False, planes)
for bits in (8, 2):
    weights = Weights.of_codes((np.arange(64 * 64 * 9) % (1 << bits)).astype(np.uint8).reshape(64, 64, 3, 3),
        (*planes[:bits - 1], -planes[bits - 1]), False, 1)
    path = products.ProductPath(weights, geometry, maps, form_for(weights, maps))
    taken = path.take(np.zeros((8, 1, 6, 6, 1), np.uint64))
    path.run(taken, 36, IntOutput(np.zeros(36 * 64, np.int32), 64))
    print("=====")
"""

AVX512 = "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vpopcntdq,+avx512vnni"
# CPU: features, and for weights of 8 and of 2 bits the kernel and what its machine code must have.
PRODUCT_CPUS = {
    "icelake-server": (
        AVX512,
        ("multiply_vnni16_8_to_ints", [r"vpdpbusd\s.*%zmm"]),
        ("multiply_vnni16_2_to_ints", [r"vpdpbusd\s.*%zmm", r"vpshufb\s.*%zmm"]),
    ),
    "alderlake": (
        "+avx2,+fma,+avxvnni",
        ("multiply_vnni8_8_to_ints", [r"vpdpbusd\s.*%ymm"]),
        ("multiply_vnni8_2_to_ints", [r"vpdpbusd\s.*%ymm", r"vpshufb\s.*%ymm"]),
    ),
    # Sums of two products of 8 bits by 8 do not fit 16 bits, those of 8 bits by 2 do.
    "haswell": (
        "+avx2,+fma",
        ("multiply_shorts8_8_to_ints", [r"vpmaddwd\s.*%ymm", r"vpmovsxbw\s.*%ymm"]),
        ("multiply_pairs8_2_to_ints", [r"vpmaddubsw\s.*%ymm", r"vpshufb\s.*%ymm"]),
    ),
}

# The inner loops for ARM, whose instructions Numba cannot compile here: LLVM's text before machine code is made, which
# LLVM then compiles for another CPU.
NEON = """
import re, sys
import numpy as np, llvmlite.binding as llvm
from numba import int64, typeof
from numba.core import codegen, cpu
from numba.core.caching import NullCache
from bnn_kernels.ops.geometry import Geometry, Maps
from bnn_kernels.ops.integer_conv import levels, products
from bnn_kernels.ops.integer_conv.form import Form
from bnn_kernels.ops.outputs import IntOutput
from bnn_kernels.ops.weights import Weights
texts, is_showing = [], False
finalize, executable = codegen.CPUCodeLibrary._finalize_final_module, cpu.CPUContext.get_executable
def keep(library):
    if not is_showing:
        return finalize(library)
    texts.append(str(library._final_module))
    library._finalized = True
codegen.CPUCodeLibrary._finalize_final_module = keep
cpu.CPUContext.get_executable = lambda *given: len if is_showing else executable(*given)
def show(kernel, rows, work, *args):
    global is_showing
    kernel._cache, is_showing = NullCache(), True
    try:
        kernel.compile((*map(typeof, args), int64, int64))
    finally:
        is_showing = False
levels.run_rows, products.run_rows = lambda *given: None, show
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
planes = tuple(1 << p for p in range(8))
geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1, 0)
maps = Maps((6, 6), (6, 6), False, planes)
for machine in sys.argv[1:]:
    product, shift, features, *bits = machine.split(":")
    texts.clear()
    for count in map(int, bits):
        weights = Weights.of_codes((np.arange(64 * 64 * 9) % (1 << count)).astype(np.uint8).reshape(64, 64, 3, 3),
            (*planes[:count - 1], -planes[count - 1]), False, 1)
        path = products.ProductPath(weights, geometry, maps, Form(product, 8, 4, shift=int(shift)))
        taken = path.take(np.zeros((8, 1, 6, 6, 1), np.uint64))
        path.run(taken, 36, IntOutput(np.zeros(36 * 64, np.int32), 64))
    triple = "aarch64-unknown-linux-gnu"
    try:
        target = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    except RuntimeError:
        print("no such target\\n=====")
        continue
    for text in texts:
        text = re.sub(r'"target-(cpu|features)"="[^"]*"', "", text)
        text = re.sub(r"(?m)^target (triple|datalayout) = .*$", "", text)
        text = re.sub(r"= (tail )?call i8 @llvm\\.x86\\.atomic[^\\n]*", "= add i8 0, 0", text)
        head = f'target triple = "{triple}"\\ntarget datalayout = "{target.target_data}"\\n'
        print(target.emit_assembly(llvm.parse_assembly(head + text)))
    print("=====")
"""

# Product, what is taken from inputs, features, and bits of the weights: what the machine code must have, and how often
# at least. Six positions by sixteen filters are 24 registers of sums.
NEON_CPUS = {
    "usdot:0:+neon,+i8mm:8": {r"\busdot\s+v": 24},
    "sdot:128:+neon,+dotprod:8:2": {r"\bsdot\s+v": 24, r"\btbl\s+v": 16},
    "smull:128:+neon:2": {r"\bsmull2?\s+v": 48, r"\bsadalp\s+v": 24, r"\baddp\s+v": 24, r"\btbl\s+v": 16},
}

# Path: machine, which of the three kernels are shown for it, and instructions that xor and the count must become.
MACHINES = {
    "neon": ("aarch64-unknown-linux-gnu:cortex-a72:0:1", [r"\bcnt\s+v\d+\.16b", r"\beor\s+v\d+\.16b", r"\buadalp\s+v"]),
    "avx512": ("x86_64-unknown-linux-gnu:icelake-server:0:2", [r"vpopcntq\s.*%zmm", r"vpxorq\s.*%zmm"]),
    "avx2": ("x86_64-unknown-linux-gnu:haswell:0", [r"vpshufb\s.*%ymm", r"vpxor\s.*%ymm", r"vpsadbw\s.*%ymm"]),
}


@pytest.fixture(scope="module")
def assemblies():
    machines = [machine for machine, _ in MACHINES.values()]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *machines], capture_output=True, text=True, check=True)
    return dict(zip(MACHINES, done.stdout.split("=====\n"), strict=False))


@pytest.mark.parametrize("path", sorted(MACHINES))
def test_the_count_is_a_vector_instruction(path, assemblies):
    if assemblies[path].startswith("no such target"):
        pytest.skip(f"this LLVM does not compile for {MACHINES[path][0]}")
    for instruction in MACHINES[path][1]:
        assert re.search(instruction, assemblies[path].split("-----\n")[0]), (
            f"{path}: no {instruction} in the machine code"
        )


def test_ternary_weights_take_one_count_and_one_join(assemblies):
    """With AVX-512 the window, the signs and the mask meet in one instruction."""
    code = assemblies["avx512"].split("-----\n")[1]
    assert re.search(r"vpternlogq\s.*%zmm", code)
    assert re.search(r"vpopcntq\s.*%zmm", code)


def test_portable_products_are_vector_instructions_on_neon(assemblies):
    if assemblies["neon"].startswith("no such target"):
        pytest.skip("this LLVM does not compile for ARM")
    code = assemblies["neon"].split("-----\n")[1]
    assert re.search(r"\bsmull2?\s+v\d+\.4s|\bsmlal2?\s+v\d+\.4s", code)


def products(folder, cpu, features):
    """Two texts, for weights of 8 and of 2 bits: the kernel's name, and its machine code for this CPU."""
    numba = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(folder), "BNN_KERNELS_ISA": "", **numba}
    command = [sys.executable, "-c", PRODUCTS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("=====\n")[:2]


@pytest.mark.quick_cases(1)
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="Numba compiles for x86 only on it")
@pytest.mark.parametrize("cpu", sorted(PRODUCT_CPUS))
def test_products_are_vector_instructions(cpu, tmp_path):
    features, *expected = PRODUCT_CPUS[cpu]
    for found, (kernel, instructions) in zip(products(tmp_path, cpu, features), expected, strict=True):
        name, _, code = found.partition("\n")
        assert name == kernel
        for instruction in instructions:
            assert re.search(instruction, code), f"{cpu}: no {instruction} in the machine code of {name}"


def test_products_are_neon_instructions():
    done = subprocess.run([sys.executable, "-c", NEON, *NEON_CPUS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for (machine, instructions), code in zip(NEON_CPUS.items(), done.stdout.split("=====\n"), strict=False):
        if code.startswith("no such target"):
            pytest.skip("this LLVM does not compile for ARM")
        for instruction, fewest in instructions.items():
            assert len(re.findall(instruction, code)) >= fewest, f"{machine}: no {instruction} in the machine code"
