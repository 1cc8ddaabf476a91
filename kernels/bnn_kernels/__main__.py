"""Commands for packed models, without torch: python -m bnn_kernels --help lists them.

A mistake in what was typed or in a file ends with one line on stderr and status 2.
"""

import argparse
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import bnn_kernels as bk
from bnn_kernels.c_header.header import write_c_header
from bnn_kernels.compile import cache as jit_cache
from bnn_kernels.model import tune
from bnn_kernels.model.bench import bench
from bnn_kernels.model.warm import example_inputs, warm
from bnn_kernels.onnx_file.export import STYLES, write_onnx
from bnn_kernels.ops.packed_layers import costs


def _fail(message: object) -> NoReturn:
    print(f"python -m bnn_kernels: {message}", file=sys.stderr)
    sys.exit(2)


def _load(path: str) -> bk.PackedModel:
    try:
        return bk.load(path)
    except (OSError, ValueError) as error:
        _fail(error)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _read_arrays(path: str) -> list[np.ndarray]:
    """Return the array of a .npy file, or those of a .npz file in their order."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return [found]
        with found:
            return [found[name] for name in found.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        _fail(f"{path} is no .npy or .npz file that can be read: {error}")


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write one array as .npy, or several as .npz with the names output0, output1, ...; whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            if path.suffix == ".npz":
                named: dict[str, Any] = {f"output{i}": array for i, array in enumerate(arrays)}
                np.savez(file, **named)
            else:
                np.save(file, arrays[0])
        os.replace(partial, path)
    except OSError as error:
        _fail(error)
    finally:
        partial.unlink(missing_ok=True)


def run_run(options: argparse.Namespace) -> None:
    """Run a model on the arrays of a file and write what it returns."""
    output = Path(options.output)
    if output.suffix not in (".npy", ".npz"):
        _fail(f"{output}: the output must be named .npy, or .npz for several arrays")
    model = _load(options.file)
    try:
        result = model(*_read_arrays(options.input))
    except TypeError as error:
        _fail(f"{options.input}: {error}")
    results = result if isinstance(result, tuple) else (result,)
    if len(results) > 1 and output.suffix == ".npy":
        _fail(f"the model returns {len(results)} arrays: name the output .npz")
    _write_arrays(output, results)
    print(f"{output}: {', '.join(f'{y.dtype} {y.shape}' for y in results)}")


def run_bench(options: argparse.Namespace) -> None:
    """Print the median and the best latency of calls, for each size of batch and number of threads."""
    print(f"{'batch':>6} {'threads':>8} {'median ms':>10} {'best ms':>10} {'images/s':>10} {'calls':>8}")
    for one in bench(_load(options.file), options.batch, options.threads, options.seconds):
        times = f"{one.median * 1e3:10.3f} {one.best * 1e3:10.3f} {one.images / one.median:10.0f}"
        print(f"{one.images:6} {one.threads:8} {times} {one.calls:8}")


def run_warm(options: argparse.Namespace) -> None:
    """Compile what calls of a model need, into the cache."""
    done = warm(_load(options.file), options.batch, options.threads)
    kept = "not kept" if done.not_kept else f"kept in {jit_cache.cache_folder()}"
    print(f"{done.compiled} kernels compiled in {done.seconds:.1f} s, {kept}")
    if done.not_kept:
        # Its only purpose was to keep them.
        _fail(done.not_kept)


def run_info(options: argparse.Namespace) -> None:
    """Print versions, the CPU's path and where machine code is kept."""
    import numba

    facts = {"bnn_kernels": bk.__version__, "numba": numba.__version__, "numpy": np.__version__, **bk.cpu_features()}
    measured = costs.measured()
    facts |= {"costs": "built in" if measured is None else f"measured on {measured.cpu}"}
    facts |= {"threads": bk.get_num_threads(), "cache": jit_cache.cache_folder() or "none: there is no home folder"}
    for name, value in facts.items():
        print(f"{name:12} {', '.join(map(str, value)) if isinstance(value, list) else value}")


def run_summary(options: argparse.Namespace) -> None:
    """Print the steps of a model; with --batch also the time of each on so many images."""
    model = _load(options.file)
    print(repr(model))
    print(model.summary(*(example_inputs(model, options.batch) if options.batch else ())))


def run_verify(options: argparse.Namespace) -> None:
    """Check a file to the last byte, and that its model runs."""
    model = _load(options.file)
    for images in (1, 1, 1):
        model(*example_inputs(model, images))
    print(f"{options.file}: whole, its plan fits, and it runs: {model!r}")


def run_tune(options: argparse.Namespace) -> None:
    """Measure which kernels are faster for levels of several bits on this CPU, for all later processes: a minute."""
    file = Path(options.output) if options.output else costs.default_file()
    if file is None:
        _fail("there is no home folder: name a file with --output, and in the environment variable BNN_KERNELS_COSTS")
    tune.check_place(file)
    print(f"{'layer':>14} {'pairs of planes':>16} {'counts us':>10} {'products us':>12}")
    found = []
    for trial in tune.trials(options.seconds):
        found.append(trial)
        print(f"{trial.kind:>14} {trial.pairs:>16} {trial.counts_us:10.1f} {trial.products_us:12.1f}", flush=True)
    result = tune.costs_of(found)
    tune.write(result, file)
    print("products from so many pairs on:", ", ".join(f"{kind} {result.fewest(kind)}" for kind in costs.KINDS))
    print(f"written: {file}")


def run_c_header(options: argparse.Namespace) -> None:
    """Write a small model as a C99 header, without allocation and without dependencies."""
    model = _load(options.file)
    write_c_header(model, options.output, options.name)
    size = Path(options.output).stat().st_size
    print(f"{options.output}: {options.name}_predict in {size:,} bytes of C99; link with the math library (-lm)")


def run_onnx(options: argparse.Namespace) -> None:
    """Write a model as ONNX, with Q/DQ nodes or those of QONNX; needs the package onnx."""
    write_onnx(_load(options.file), options.output, options.style)
    print(f"{options.output}: {Path(options.output).stat().st_size:,} bytes of ONNX, style {options.style}")


def parser() -> argparse.ArgumentParser:
    """Return the command line: one subcommand for each `run_` function above."""
    main = argparse.ArgumentParser(prog="python -m bnn_kernels", description="Packed models without torch.")
    main.add_argument("--version", action="version", version=f"bnn_kernels {bk.__version__}")
    commands = main.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], None], file: bool = True) -> argparse.ArgumentParser:
        text = function.__doc__ or ""
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        if file:
            command.add_argument("file", metavar="FILE", help="a packed model, such as packed.safetensors")
        return command

    command = add("run", run_run)
    command.add_argument("input", metavar="INPUT", help=".npy, or .npz with the inputs in their order; (N, ...) each")
    command.add_argument("output", metavar="OUTPUT", help="the .npy to write, or .npz for several outputs")
    command = add("bench", run_bench)
    command.add_argument(
        "--batch", type=_positive, nargs="+", default=[1, 8], metavar="N", help="images in a call (1 8)"
    )
    command.add_argument("--threads", type=_positive, nargs="+", metavar="N", help="numbers of threads (1 and all)")
    command.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="to measure each for (1)")
    command = add("warm", run_warm)
    command.add_argument(
        "--batch", type=_positive, nargs="+", default=[1, 8], metavar="N", help="images in a call (1 8)"
    )
    command.add_argument("--threads", type=_positive, nargs="+", metavar="N", help="numbers of threads (1 and all)")
    add("info", run_info, file=False)
    command = add("summary", run_summary)
    command.add_argument("--batch", type=_positive, metavar="N", help="time each step on so many images")
    add("verify", run_verify)
    command = add("c-header", run_c_header)
    command.add_argument("output", metavar="OUTPUT", help="the header to write, such as model.h")
    command.add_argument("--name", default="model", metavar="NAME", help="what names in C begin with (model)")
    command = add("onnx", run_onnx)
    command.add_argument("output", metavar="OUTPUT", help="the file to write, such as model.onnx")
    command.add_argument("--style", choices=STYLES, default="qdq", help="how integers are written (qdq)")
    command = add("tune", run_tune, file=False)
    command.add_argument("--seconds", type=_seconds, default=0.2, metavar="S", help="to measure each layer for (0.2)")
    command.add_argument("--output", metavar="FILE", help="the file of costs (one in the folder of machine code)")
    return main


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = parser().parse_args(arguments)
    try:
        options.function(options)
    except (OSError, ValueError, MemoryError, ImportError) as error:
        _fail(error)


if __name__ == "__main__":
    main()
