"""Pack an ONNX file: python -m experiments.from_onnx file=MODEL.onnx [inputs=IMAGES.npy] (needs the extra `onnx`).

Reads a file in FP32, with Q/DQ nodes or with those of QONNX, converts it, and writes the packed network. Prints which
layers are bits, the parity report, and, if ONNX Runtime is installed, on how many inputs both predict the same. Exit
status 1 if a step differs by more than rounding, or more than a share `tolerance` of the predictions.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments import cli


def inputs_of(network: Any, file: str | None, count: int) -> Any:
    """Return the inputs to compare on: those of a .npy file, or `count` random ones, float32 or uint8."""
    import torch

    shape, dtype = network.meta["inputs"][0]
    if file is not None:
        return torch.from_numpy(np.load(file)[:count].astype("uint8" if dtype == torch.uint8 else "float32"))
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return torch.randn(count, *shape, generator=generator)


def runtime_answers(file: Path, inputs: Any) -> np.ndarray | None:
    """Return what ONNX Runtime makes of a file, None if it is not installed or has no operator for a node."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As the nodes say: its own graph of integers rounds some levels to the one beside.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception:  # of classes of its own; nodes of QONNX are none that it has
        return None
    given = session.get_inputs()[0]
    size = given.shape[0] if isinstance(given.shape[0], int) else len(inputs)
    parts = [session.run(None, {given.name: part.numpy()})[0] for part in inputs.split(size) if len(part) == size]
    return np.concatenate(parts)


def task(config: DictConfig) -> None:
    """Read, convert, compare and write."""
    import bnn

    file = Path(config.file)
    output = file.with_suffix(".safetensors") if config.output is None else Path(config.output)
    network = bnn.from_onnx(file, None if config.input_shape is None else [tuple(config.input_shape)])
    if len(network.meta["inputs"]) != 1:
        raise ValueError("the command compares networks of one input: use bnn.from_onnx and bnn.convert for others")
    inputs = inputs_of(network, config.inputs, config.parity)
    packed = bnn.convert(network, inputs[:1], require_bits=config.require_bits)
    packed.info |= {"name": file.stem}
    print(bnn.converter.explain(network, inputs[:1]), end="\n\n")
    report = bnn.check_parity(network, packed, inputs)
    packed.save(output)
    print(f"{packed.summary()}\n\n{report}")
    expected = runtime_answers(file, inputs)
    answers = packed(inputs.numpy())
    answers = answers[0] if isinstance(answers, tuple) else answers
    agreed = 1.0 if report.agreement is None else report.agreement + report.undecided
    if expected is not None:
        found = answers[: len(expected)]
        same = (found.argmax(1) == expected.argmax(1)).reshape(len(found), -1).all(1)
        agreed = min(agreed, float(same.mean()))
        print(
            f"ONNX Runtime: same predictions on {same.sum():,} of {len(same):,}, largest difference "
            f"{np.abs(found - expected).max():.3g} of {np.abs(expected).max():.3g}"
        )
    print(f"{output}: {output.stat().st_size:,} bytes (the ONNX file: {file.stat().st_size:,})")
    if report.first_difference is not None or 1 - agreed > config.tolerance:
        print("error: the packed network does not answer like the ONNX file, see the report", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point."""
    cli.run(task, "from_onnx", expected=(OSError, ValueError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
