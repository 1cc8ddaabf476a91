"""Which kernel this CPU gets: chosen once, from what the compiler may use; BNN_KERNELS_ISA forces another."""

import ctypes
import functools
import os
import platform
import sys

import llvmlite.binding as llvm
from numba import config
from numba.core.registry import cpu_target

# In order of preference, with the CPU features that each needs.
PATHS = {"avx512": ("avx512vpopcntdq", "avx512f"), "avx2": ("avx2",), "neon": ("neon",), "generic": ()}

# What Linux says of an ARM CPU: (entry of getauxval, bit) of LLVM's names.
_AUXILIARY = {"neon": (16, 1), "dotprod": (16, 20), "i8mm": (26, 13)}


def complete_features_on_arm() -> None:
    """Tell Numba's compiler which products of bytes a CPU with Linux on ARM has: LLVM does not look for them.

    Does nothing elsewhere, where the user has named a CPU or features, or once Numba has made its compiler.
    """
    is_linux_on_arm = sys.platform.startswith("linux") and platform.machine() == "aarch64"
    named = config.CPU_NAME is not None or config.CPU_FEATURES is not None
    if not is_linux_on_arm or named or "_toplevel_target_context" in vars(cpu_target):
        return
    read = ctypes.CDLL(None).getauxval
    read.argtypes, read.restype = [ctypes.c_ulong], ctypes.c_ulong
    found = [f"+{name}" for name, (entry, bit) in _AUXILIARY.items() if read(entry) >> bit & 1]
    config.CPU_FEATURES = ",".join([*llvm.get_host_cpu_features().flatten().split(","), *found]).strip(",")


@functools.cache
def _features() -> frozenset[str]:
    """Features of the CPU that Numba compiles for: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, else the host's."""
    name, features = (getattr(config, option) for option in ("CPU_NAME", "CPU_FEATURES"))
    if name not in (None, "host") or features is not None:
        named = (features or "").split(",")
        return frozenset(name[1:] for name in named if name.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@functools.cache
def isa() -> str:
    """Return the path in use: "avx512" (vpopcntq), "avx2" (table lookups), "neon" or "generic" (plain popcounts).

    ValueError if BNN_KERNELS_ISA names an unknown path or one that this CPU cannot run.
    """
    possible = [name for name, needs in PATHS.items() if set(needs) <= _features()]
    wanted = os.environ.get("BNN_KERNELS_ISA")
    if not wanted:
        return possible[0]
    if wanted not in PATHS:
        raise ValueError(f"BNN_KERNELS_ISA must be one of {', '.join(PATHS)}, got {wanted!r}")
    if wanted not in possible:
        raise ValueError(f"BNN_KERNELS_ISA={wanted} needs {' and '.join(PATHS[wanted])}; this CPU runs {possible}")
    return wanted


def has(feature: str) -> bool:
    """Whether the CPU that Numba compiles for has a feature, by LLVM's name for it, such as "avx512vnni"."""
    return feature in _features()


def cpu_features() -> dict[str, object]:
    """Return {"cpu": LLVM's name, "isa": the path in use, "possible": paths that run here, "features": that decide}."""
    counting = sorted({feature for needs in PATHS.values() for feature in needs} & _features())
    possible = [name for name, needs in PATHS.items() if set(needs) <= _features()]
    return {"cpu": llvm.get_host_cpu_name(), "isa": isa(), "possible": possible, "features": counting}
