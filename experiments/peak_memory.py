"""Peak memory of one network in a process of its own.

python -m experiments.peak_memory packed|fp32 FILE BATCH C H W [--pixels]

Prints, in bytes, the memory of the process after the imports and its peak after one run on random images.
packed: a packed file, without torch. fp32: a frozen TorchScript file.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.process_memory import peak_bytes


def _run_packed(file: str, images: np.ndarray) -> int:
    import bnn_kernels as bk

    bk.set_num_threads(1)
    bk.PackedConv2d(np.ones((8, 8, 3, 3), np.float32), padding=1)(np.ones((1, 8, 4, 4), np.float32))  # load the kernels
    before = peak_bytes()
    bk.load(file)(images)
    return before


def _run_fp32(file: str, images: np.ndarray) -> int:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.nn.Conv2d(8, 8, 3)(torch.ones(1, 8, 4, 4))
    before = peak_bytes()
    with torch.inference_mode():
        torch.jit.load(file)(torch.from_numpy(images))
    return before


def measure(kind: str, file: Path, batch: int, shape: tuple[int, ...], pixels: bool = False) -> dict[str, int]:
    """Return {"imports_bytes", "peak_bytes"} of a new process; RuntimeError with its output if it fails.

    pixels: whether the network takes uint8.
    """
    command = [sys.executable, "-m", "experiments.peak_memory", kind, str(file), *map(str, (batch, *shape))]
    command += ["--pixels"] * pixels
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()[-500:]}")
    imports, peak = map(int, done.stdout.split())
    return {"imports_bytes": imports, "peak_bytes": peak}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("packed", "fp32"))
    parser.add_argument("file", help="packed file, or frozen TorchScript file")
    parser.add_argument("shape", type=int, nargs="+", metavar="N", help="BATCH C H W of the images")
    parser.add_argument("--pixels", action="store_true", help="the network takes uint8 pixels")
    options = parser.parse_args()
    run: Any = {"packed": _run_packed, "fp32": _run_fp32}[options.kind]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, options.shape, np.uint8)
    images = pixels if options.pixels else rng.standard_normal(options.shape, dtype=np.float32)
    before = run(options.file, images)
    print(before, peak_bytes())


if __name__ == "__main__":
    sys.exit(main())
