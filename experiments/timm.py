"""Convert architectures of timm: python -m experiments.timm [only='resnet*'] (needs the extra `timm`).

Each architecture is built without pretrained weights, gets the state of a trained network (`bnn.models.trained_like`),
and is converted as it is and after `bnn.quantize` with each policy; every packed network is held against PyTorch on
`inputs` random images. Writes results/timm.json after each one; what is not tried this time keeps its row. With
seconds=1 the packed networks are timed beside PyTorch, one image at a time.
"""

import fnmatch
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.results import read_json, write_json

Row = dict[str, Any]


def policies(config: DictConfig) -> dict[str, Row]:
    """Return the chosen policies: keyword arguments of `bnn.quantize`, none for the network as it is."""
    listed: Any = OmegaConf.to_container(config.policies, resolve=True)
    return {name: dict(listed[name]) for name in (config.chosen or listed)}


def convert_one(name: str, size: int, policy: Row, inputs: int, seconds: float) -> Row:
    """Return what becomes of one architecture with one policy.

    size: height and width of its images. policy: keyword arguments of `bnn.quantize`; empty for FP32.
    """
    import timm
    import torch

    import bnn
    from bnn.converter import ConversionError
    from bnn.models.trained_like import trained_like
    from experiments.timing import pair

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=100, **_sized(name, size))
    images = torch.randn(inputs, 3, size, size)
    with torch.no_grad():
        trained_like(network, images[:8])
        if policy:
            try:  # an example for those that torch.fx cannot trace
                network = bnn.quantize(network, **policy, example_input=images[:1])
            except ValueError as error:
                return {"parameters": sum(p.numel() for p in network.parameters()), "refused": str(error)}
            if "bits" in policy or "weight_bits" in policy:
                network = bnn.calibrate(network, [images[:8]])
            network.eval()
    row: Row = {"parameters": sum(p.numel() for p in network.parameters())}
    start = time.perf_counter()
    try:
        packed = bnn.convert(network, images[:1])
    except ConversionError as error:
        return row | {"refused": str(error)}
    row |= {"seconds": round(time.perf_counter() - start, 2), "packed_bytes": packed.stored_bytes}
    explanation = bnn.converter.explain(network, images[:1])
    report = bnn.check_parity(network, packed, images)
    first = report.first_difference
    row |= {
        "layers": len(explanation.layers),
        "on_bits": sum(layer.on_bits for layer in explanation.layers),
        "missed": [f"{layer.place}: {layer.reason}" for layer in explanation.missed],
        "inputs": inputs,
        "agreement": report.agreement,
        "undecided": report.undecided,
        "parity": report.ok,
        "first_difference": None if first is None else first.source,
    }
    if seconds:
        one, array = images[:1], images[:1].numpy()
        with torch.inference_mode():
            ours, theirs = pair(lambda: packed(array), lambda: network(one), seconds)
        row |= {"packed_ms": round(1e3 * ours.median, 4), "torch_ms": round(1e3 * theirs.median, 4)}
    return row


def _sized(name: str, size: int) -> Row:
    """Return the arguments by which an architecture takes images of another size, where it has to be told."""
    import timm

    fixed = timm.get_pretrained_cfg(name)
    tokens = any(part in name for part in ("vit", "deit", "swin", "mixer", "beit", "cait"))
    return {"img_size": size} if tokens and fixed is not None and fixed.input_size[-1] != size else {}


def outcome(row: Row) -> str:
    """Return what came of a network in a few words."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    if row["first_difference"]:
        return f"differs first at {row['first_difference']}"
    if not row["parity"]:
        return f"each step agrees, the predictions on {row['agreement']:.1%}: rounding before a level decides"
    return f"in floats: {row['missed'][0]}" if row["missed"] else "agrees"


def task(config: DictConfig) -> None:
    """Convert the architectures one after the other, then print the table."""
    from bnn.training import provenance
    from experiments.timing import set_threads

    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm cannot be imported ({error}): pip install 'bitplanes[timm]'") from error
    set_threads(config.threads)
    output = Path(config.output)
    rows = {(row["name"], row["policy"]): row for row in (read_json(output)["rows"] if output.exists() else [])}
    sizes = {name: size for name, size in config.architectures.items() if fnmatch.fnmatch(name, config.only)}
    if not sizes:
        raise ValueError(f"only={config.only!r} names none of {', '.join(config.architectures)}")
    for name, size in sizes.items():
        for label, policy in policies(config).items():
            found = convert_one(name, size, policy, config.inputs, config.seconds)
            rows[name, label] = {"name": name, "size": size, "policy": label} | found
            print(f"{name} {label}: {outcome(rows[name, label])}", flush=True)
            content = {
                "command": this_command(["only", "chosen", "output"]),
                "timm": timm.__version__,
                "threads": config.threads,
            }
            write_json(output, {**content, "rows": list(rows.values()), **provenance()})
    table = Table(title="architectures of timm")
    for column in ("network", "policy", "layers on bits", "bytes", "outcome"):
        table.add_column(column, overflow="fold")
    for row in rows.values():
        bits = f"{row['on_bits']} of {row['layers']}" if "layers" in row else ""
        table.add_row(row["name"], row["policy"], bits, f"{row.get('packed_bytes', 0):,}", outcome(row))
    cli.console().print(table)


def main() -> None:
    """Entry point."""
    cli.run(task, "timm", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
