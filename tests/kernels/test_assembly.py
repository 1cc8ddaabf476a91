"""Machine code of the convolution's inner loop: compiled for CPUs other than this one too, but not run there."""

import os
import re
import subprocess
import sys

import pytest

# Compiles the kernel afresh (cached machine code cannot be looked into), takes LLVM's text without what names this CPU
# or only exists on x86 (the count of references, of no interest here), and prints the assembly for another.
PROGRAM = """
import re, sys
import numpy as np, bnn_kernels as bk, llvmlite.binding as llvm
from bnn_kernels.ops.binary_conv.popcount import PopcountPath, popcount_kernel
from bnn_kernels.ops import outputs
from bnn_kernels.ops.packed_layers import choice
conv = bk.PackedConv2d(np.ones((64, 64, 3, 3), np.float32), padding=1)
choice.path_for = PopcountPath
conv(bk.pack(np.ones((1, 64, 6, 6), np.float32)))
kernel = popcount_kernel(outputs.IntOutput, True, True)
text = kernel.inspect_llvm(kernel.signatures[0])
text = re.sub(r'"target-(cpu|features)"="[^"]*"', "", text)
text = re.sub(r"(?m)^target (triple|datalayout) = .*$", "", text)
text = re.sub(r"= (tail )?call i8 @llvm\\.x86\\.atomic[^\\n]*", "= add i8 0, 0", text)
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
for machine in sys.argv[1:]:
    triple, cpu = machine.split(":")
    try:
        target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    except RuntimeError:
        print("no such target")
        continue
    module = llvm.parse_assembly(f'target triple = "{triple}"\\ntarget datalayout = "{target.target_data}"\\n{text}')
    print(target.emit_assembly(module))
    print("=====")
"""

# Path: machine, and instructions that xor and the count must become.
MACHINES = {
    "neon": ("aarch64-unknown-linux-gnu:cortex-a72", [r"\bcnt\s+v\d+\.16b", r"\beor\s+v\d+\.16b", r"\buadalp\s+v"]),
    "avx512": ("x86_64-unknown-linux-gnu:icelake-server", [r"vpopcntq\s.*%zmm", r"vpxorq\s.*1to8.*%zmm"]),
    "avx2": ("x86_64-unknown-linux-gnu:haswell", [r"vpshufb\s.*%ymm", r"vpxor\s.*%ymm", r"vpsadbw\s.*%ymm"]),
}


@pytest.fixture(scope="module")
def assemblies(tmp_path_factory):
    environment = {**os.environ, "BNN_KERNELS_CACHE": str(tmp_path_factory.mktemp("cache"))}
    machines = [machine for machine, _ in MACHINES.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *machines], capture_output=True, text=True, env=environment, check=True
    )
    return dict(zip(MACHINES, done.stdout.split("=====\n"), strict=False))


@pytest.mark.parametrize("path", sorted(MACHINES))
def test_the_count_is_a_vector_instruction(path, assemblies):
    if assemblies[path].startswith("no such target"):
        pytest.skip(f"this LLVM does not compile for {MACHINES[path][0]}")
    for instruction in MACHINES[path][1]:
        assert re.search(instruction, assemblies[path]), f"{path}: no {instruction} in the machine code"
