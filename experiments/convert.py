"""Convert a trained run into bits: python -m experiments.convert run=PATH [parity=N].

Writes into the run's folder packed.safetensors and conversion.json (sizes, parity report, accuracy of the packed
network on the whole test split). Exit status 1 if a step differs by more than rounding, or more than a share
`tolerance` of the predictions.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import cli
from experiments.hydra_versions import instantiate
from experiments.identity import experiment_id
from experiments.lock import run_lock
from experiments.results import bits_name, write_json
from experiments.run_parts import summary_of


def convert_run(
    folder: Path, inputs: int, output: Path | None = None, tolerance: float = 0.0, data_root: str | None = None,
    sign_of_zero: int = 0,
) -> tuple[dict[str, Any], str, bool]:  # fmt: skip
    """Convert one run and write its files; return (content of conversion.json, report as text, whether it passes).

    A process that trains or converts the run now is waited for.
    """
    from experiments.runs import load_config

    load_config(folder)  # a folder that is no run is told before anything is made in it
    with run_lock(folder):
        return convert_held_run(folder, inputs, output, tolerance, data_root, sign_of_zero)


def convert_held_run(
    folder: Path, inputs: int, output: Path | None = None, tolerance: float = 0.0, data_root: str | None = None,
    sign_of_zero: int = 0,
) -> tuple[dict[str, Any], str, bool]:  # fmt: skip
    """Do what `convert_run` does, for a caller who holds the folder."""
    import bnn
    from bnn.training import provenance, read_checkpoint
    from experiments.runs import load_run

    config, network = load_run(folder)
    if data_root is not None:
        OmegaConf.update(config, "data.root", data_root, force_add=True)
    data = instantiate(config.data)
    pixels = bnn.takes_pixels(network)
    examples = _first(data, pixels, max(1, inputs))
    trained = network
    widths: dict[str, tuple[int, int]] = {}
    kept: dict[str, str] = {}
    if "pruning" in config and instantiate(config.pruning).removes_channels:
        network, widths, kept = bnn.pruning.remove_dead_channels(trained, examples[:1])
    packed = bnn.convert(network, examples[:1], sign_of_zero=sign_of_zero)
    packed.info |= {
        "name": config.name,
        "quantizer": config.quantizer.name,
        "seed": config.seed,
        "classes": data.num_classes,
    }
    report = bnn.check_parity(network, packed, examples)
    target = output or folder / "packed.safetensors"
    packed.save(target)
    counts, bits = _compared(trained, packed, data, pixels)
    content = {
        "experiment": experiment_id(config),
        "steps": read_checkpoint(folder)["global_step"],
        "name": config.name,
        "quantizer": config.quantizer.name,
        "label": config.quantizer.label,
        "seed": config.seed,
        "file_bytes": target.stat().st_size,
        "payload_bytes": packed.stored_bytes,
        "fp32_bytes": 4 * summary_of(trained, data).parameters,
        **({"channels": {name: list(pair) for name, pair in widths.items()}} if "pruning" in config else {}),
        "test_images": counts["labels"],
        "same_predictions": counts["same"],
        "test_accuracy_packed": round(counts["packed"] / counts["labels"], 6),
        "test_accuracy_trained": round(counts["trained"] / counts["labels"], 6),
        **bits,
        "parity": report.to_dict(),
        **provenance(),
    }
    write_json(folder / "conversion.json", content)
    # The report looks for classes on axis 1, which of tokens are places.
    counted = report.agreement is not None and data.kind != "text"
    agreed = report.agreement + report.undecided if counted else 1.0
    differ = max(1 - agreed, 1 - counts["same"] / counts["labels"])
    passes = report.first_difference is None and differ <= tolerance
    lines = [f"{name}: {now} of {before} channels are left" for name, (before, now) in widths.items()]
    lines += [f"{name}: its pruned channels stay, as {reason}" for name, reason in kept.items()]
    return content, "\n".join([*lines, f"{packed.summary()}\n\n{report}"]), passes


def _inputs(data: Any, pixels: bool) -> Iterator[tuple[Any, Any]]:
    """Give the batches of the test split as a packed network takes them."""
    import torch

    for inputs, labels in data.batches("test", data.evaluation_batch, pixels=pixels):
        yield inputs.to(torch.uint8) if pixels else inputs, labels


def _first(data: Any, pixels: bool, count: int) -> Any:
    """Return the first inputs of the test split, so many of them or all."""
    import torch

    found, total = [], 0
    for inputs, _ in _inputs(data, pixels):
        found.append(inputs)
        total += len(inputs)
        if total >= count:
            break
    return torch.cat(found)[:count]


def _compared(network: Any, packed: Any, data: Any, pixels: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Return how many labels of the test split there are, which each network gets right, how many answers are the same.

    And of a language model the bits a token of both.
    """
    import torch

    counts = dict.fromkeys(("labels", "same", "packed", "trained"), 0)
    sums = dict.fromkeys(("trained", "packed"), 0.0)
    for inputs, labels in _inputs(data, pixels):
        with torch.no_grad():
            logits = {"trained": network(inputs), "packed": torch.from_numpy(packed(inputs.numpy()))}
        answers = {name: values.argmax(-1) for name, values in logits.items()}
        counts["labels"] += labels.numel()
        counts["same"] += int((answers["packed"] == answers["trained"]).sum())
        for name, values in logits.items():
            counts[name] += int((answers[name] == labels).sum())
            if data.kind == "text":
                loss = torch.nn.functional.cross_entropy(values.flatten(0, -2), labels.flatten(), reduction="sum")
                sums[name] += float(loss) / math.log(2)
    if data.kind != "text":
        return counts, {}
    return counts, {f"{bits_name(data)}_{name}": round(sums[name] / counts["labels"], 6) for name in sums}


def task(config: DictConfig) -> None:
    """Convert and report."""
    from experiments.runs import find_run

    folder = find_run(Path(config.run))
    output = None if config.output is None else Path(config.output)
    content, text, passes = convert_run(
        folder, config.parity, output, config.tolerance, config.data_root, config.sign_of_zero
    )
    print(text)
    print(
        f"{output or folder / 'packed.safetensors'}: {content['file_bytes']:,} bytes "
        f"(FP32 weights: {content['fp32_bytes']:,}), same predictions on {content['same_predictions']:,} of "
        f"{content['test_images']:,} of the test split, test accuracy {content['test_accuracy_packed']:.2%}"
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
