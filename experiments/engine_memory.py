"""Resident memory of a network that an engine has built, in a process of its own.

python -m experiments.engine_memory ENGINE FOLDER DTYPE N C H W

Prints, in bytes, what is resident after the engine's libraries are imported and after three runs on random inputs, with
one thread.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.process_memory import resident_bytes

# What an engine imports when it loads, beside its libraries.
_IMPORTS = {"pytorch": ("torch", "bnn"), "torchao int8": ("torch",), "torchao int8 trained": ("torch",)}


def measure(engine: str, folder: Path, example: np.ndarray) -> dict[str, int]:
    """Return {"imports_bytes", "resident_bytes"} of a new process; RuntimeError with its output if it fails."""
    command = [sys.executable, "-m", "experiments.engine_memory", engine, str(folder.resolve()), str(example.dtype)]
    command += map(str, example.shape)
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise RuntimeError(f"measuring memory of {engine} failed: {done.stderr.strip()[-500:]}")
    imports, resident = map(int, done.stdout.split()[-2:])
    return {"imports_bytes": imports, "resident_bytes": resident}


def run(name: str, folder: Path, example: np.ndarray) -> int:
    """Load and run a network three times; return the bytes that were resident before."""
    from experiments.engines import ENGINES

    engine = ENGINES[name]
    for library in (*engine.libraries, *_IMPORTS.get(name, ())):
        importlib.import_module(library)
    if name.startswith("packed"):
        import bnn_kernels as bk

        bk.set_num_threads(1)
        bk.PackedConv2d(np.ones((8, 8, 3, 3), np.float32), padding=1)(np.ones((1, 8, 4, 4), np.float32))  # the kernels
    elif "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    before = resident_bytes()
    network = engine.load(folder, 1, batch=len(example), counted=False)
    for _ in range(3):
        network.predict(example)
    return before


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="a name of experiments.engines.ENGINES")
    parser.add_argument("folder", type=Path, help="what the engine has built")
    parser.add_argument("dtype", choices=("float32", "uint8"), help="of the inputs")
    parser.add_argument("shape", type=int, nargs="+", metavar="N", help="N C H W of the inputs")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    example = (255 * rng.random(options.shape, np.float32)).astype(options.dtype)
    before = run(options.engine, options.folder, example)
    print(before, resident_bytes())


if __name__ == "__main__":
    sys.exit(main())
