"""Convert a trained run into bits: python -m experiments.convert run=PATH [parity=N].

Writes into the run's folder packed.safetensors and conversion.json (sizes, parity report, accuracy of the packed
network on the whole test split). Exit status 1 if a step differs by more than rounding, or more than a share
`tolerance` of the predictions.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments import cli
from experiments.identity import experiment_id
from experiments.lock import run_lock
from experiments.results import write_json


def convert_run(
    folder: Path, inputs: int, output: Path | None = None, tolerance: float = 0.0, data_root: str | None = None
) -> tuple[dict[str, Any], str, bool]:
    """Convert one run and write its files; return (content of conversion.json, report as text, whether it passes).

    A process that trains or converts the run now is waited for.
    """
    from experiments.runs import load_config

    load_config(folder)  # a folder that is no run is told before anything is made in it
    with run_lock(folder):
        return _convert_run(folder, inputs, output, tolerance, data_root)


def _convert_run(
    folder: Path, inputs: int, output: Path | None, tolerance: float, data_root: str | None
) -> tuple[dict[str, Any], str, bool]:
    import torch

    import bnn
    from bnn.training import provenance, read_checkpoint
    from experiments.runs import load_run

    config, network = load_run(folder)
    if data_root is not None:
        OmegaConf.update(config, "data.root", data_root, force_add=True)
    data = instantiate(config.data)
    pixels = bnn.takes_pixels(network)
    images = data.test.images if pixels else data.normalizer()(data.test.images)
    packed = bnn.convert(network, images[:1])
    packed.info |= {
        "name": config.name,
        "quantizer": config.quantizer.name,
        "seed": config.seed,
        "classes": data.num_classes,
    }
    report = bnn.check_parity(network, packed, images[: max(1, inputs)])
    target = output or folder / "packed.safetensors"
    packed.save(target)
    labels = data.test.labels.numpy()
    with torch.no_grad():
        trained = torch.cat([network(part).argmax(1) for part in images.split(500)]).numpy()
    answers = np.concatenate([packed(part.numpy()).argmax(1) for part in images.split(500)])
    content = {
        "experiment": experiment_id(config),
        "steps": read_checkpoint(folder)["global_step"],
        "name": config.name,
        "quantizer": config.quantizer.name,
        "label": config.quantizer.label,
        "seed": config.seed,
        "file_bytes": target.stat().st_size,
        "payload_bytes": packed.nbytes,
        "fp32_bytes": 4 * bnn.summary(network, data.input_shape).parameters,
        "test_images": len(labels),
        "same_predictions": int((answers == trained).sum()),
        "test_accuracy_packed": round(float((answers == labels).mean()), 6),
        "test_accuracy_trained": round(float((trained == labels).mean()), 6),
        "parity": report.to_dict(),
        **provenance(),
    }
    write_json(folder / "conversion.json", content)
    agreed = 1.0 if report.agreement is None else report.agreement + report.undecided
    differ = max(
        1 - agreed,
        1 - content["same_predictions"] / len(labels),
    )
    passes = report.first_difference is None and differ <= tolerance
    return content, f"{packed.summary()}\n\n{report}", passes


def task(config: DictConfig) -> None:
    """Convert and report."""
    from experiments.runs import find_run

    folder = find_run(Path(config.run))
    output = None if config.output is None else Path(config.output)
    content, text, passes = convert_run(folder, config.parity, output, config.tolerance, config.data_root)
    print(text)
    print(
        f"{output or folder / 'packed.safetensors'}: {content['file_bytes']:,} bytes "
        f"(FP32 weights: {content['fp32_bytes']:,}), same predictions on {content['same_predictions']:,} of "
        f"{content['test_images']:,} test images, test accuracy {content['test_accuracy_packed']:.2%}"
    )
    if not passes:
        print("error: the packed network does not answer like the trained one, see the report", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point."""
    from bnn.converter import ConversionError
    from bnn.data import DataError
    from bnn.training import RunError

    cli.run(task, "convert", expected=(ConversionError, DataError, RunError, OSError))


if __name__ == "__main__":
    sys.exit(main())
