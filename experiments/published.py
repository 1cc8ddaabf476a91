"""Try published network definitions: python -m experiments.published sources=FOLDER [only='*ReActNet*'].

Which ones, of which repository and commit, stands in configs/published.yaml. FOLDER holds their checkouts, each named
OWNER+NAME. Each network is built by the repository's own code as it stands, gets the state of a trained network
(`bnn.models.trained_like`), is converted and held against PyTorch on `inputs` random inputs. A graphics card is not
needed. Writes results/published_networks.json after each network; those not tried this time keep their rows.
"""

import fnmatch
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments import cli
from experiments.commands import this_command
from experiments.results import read_json, write_json

Row = dict[str, Any]
# What names a network; with a result they make a row.
_NAMES = ("repository", "commit", "folder", "class", "arguments", "argv", "label")


def name_of(network: Row) -> str:
    """Return the name that `only` selects by: OWNER/NAME and module:Class, with arguments of Python and of a shell."""
    given = [f"{name}={value}" for name, value in network["arguments"].items() if not isinstance(value, dict)]
    return " ".join([network["repository"], network["folder"], network["class"], *given, *network["argv"]])


def networks(config: DictConfig) -> list[Row]:
    """Return the networks that are to be tried, with defaults for what they leave out."""
    listed: Any = OmegaConf.to_container(config.networks, resolve=True)
    defaults: Row = {"folder": ".", "arguments": {}, "argv": [], "buffers": {}}
    rows = [{**defaults, **network, "commit": config.commits[network["repository"]]} for network in listed]
    chosen = [row for row in rows if fnmatch.fnmatch(name_of(row).lower(), config.only.lower())]
    if not chosen:
        raise ValueError(f"only={config.only!r} names none of {', '.join(name_of(row) for row in rows)}")
    return chosen


def tried(network: Row, sources: Path, inputs: int, limit: float) -> Row:
    """Return what came of a network, tried in a process of its own."""
    checkout = sources / network["repository"].replace("/", "+")
    if not checkout.is_dir():
        raise ValueError(f"{checkout} is missing: clone https://github.com/{network['repository']} there")
    task = {
        "folder": str((checkout / network["folder"]).resolve()),
        "inputs": inputs,
        **{name: network[name] for name in ("class", "arguments", "argv", "buffers", "shape")},
    }
    command = [sys.executable, "-W", "ignore", "-c", "from experiments.published_trial import main; main()"]
    try:
        done = subprocess.run(
            command, input=json.dumps(task), capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"fails": f"not done after {limit:g} s"}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        return {
            "fails": f"the process ended with status {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}"
        }
    result: Row = json.loads(last)
    return result


def as_it_stands(row: Row) -> bool:
    """Whether a network converts, agrees with PyTorch, and runs every product of few values by few values on bits."""
    return bool(row.get("parity")) and not row["missed"] and row["on_bits"] >= row["few_valued_products"]


def outcome(row: Row) -> str:
    """Return what came of a network in a few words."""
    if as_it_stands(row):
        return "converts as it stands"
    if "refused" in row:
        return f"refused: {row['refused']}"
    if "fails" in row:
        return f"does not run: {row['fails']}"
    if row["missed"]:
        return f"in floats: {row['missed'][0]}"
    if row["on_bits"] < row["few_valued_products"]:
        return f"products of few values in floats: {row['few_valued_products'] - row['on_bits']}"
    if row["first_difference"]:
        return f"differs first at {row['first_difference']}"
    own = row.get("float64_agreement")
    beside = "" if own is None else f" (of PyTorch's in float64: {own:.1%})"
    return f"each step agrees, the predictions on {row['agreement']:.1%}{beside}: rounding before a level decides"


def summary(rows: list[Row]) -> str:
    """Return how many networks convert as they stand, and how many more differ by rounding alone."""
    done = [row for row in rows if as_it_stands(row)]
    rounded = [row for row in rows if not as_it_stands(row) and outcome(row).startswith("each step agrees")]
    return (
        f"{len(done)} of {len(rows)} networks, of {len({row['repository'] for row in done})} repositories, convert as "
        f"they stand; in {len(rounded)} more each step agrees, and rounding decides some predictions."
    )


def show(rows: list[Row]) -> None:
    """Print one line a network."""
    table = Table(title="published networks")
    for column in ("network", "W/A", "layers on bits", "same predictions", "outcome"):
        table.add_column(column, overflow="fold")
    for row in rows:
        found = "layers" in row
        bits = f"{row['on_bits']} of {row['layers']}" if found else ""
        same = f"{row['agreement']:.2%}" if found and row["agreement"] is not None else ""
        table.add_row(name_of(row), row["label"], bits, same, outcome(row))
    cli.console().print(table)
    print(summary(rows))


def task(config: DictConfig) -> None:
    """Try the networks one after the other, then print the table."""
    from bnn.training import provenance

    output = Path(config.output)
    before = read_json(output)["rows"] if output.exists() else []
    rows = {name_of(row): row for row in before}
    for network in networks(config):
        found = tried(network, Path(config.sources), config.inputs, config.limit)
        rows[name_of(network)] = {name: network[name] for name in _NAMES} | found
        print(f"{name_of(network)}: {outcome(rows[name_of(network)])}", flush=True)
        content = {
            "command": this_command(["only", "sources", "output", "limit"]),
            "rows": list(rows.values()),
            **provenance(),
        }
        write_json(output, content)
    show(list(rows.values()))


def main() -> None:
    """Entry point."""
    cli.run(task, "published", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
