"""The README's numbers are those of the result files, and its Python runs."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows(name, key):
    return json.loads((ROOT / "results" / name).read_text())[key]


def cells(label):
    """The cells of the README's table row that begins with a label."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(("label", "quantizer"), [("XNOR-Net, 1/1", "xnor"), ("FP32 twin", "fp32")])
def test_accuracies_and_sizes(label, quantizer):
    (row,) = [row for row in rows("lenet5_mnist.json", "rows") if row["quantizer"] == quantizer]
    accuracy, _published, size, same = cells(label)
    assert accuracy == f"{100 * row['test_accuracy']:.2f} %"
    assert size == f"{row['file_bytes'] / 1000:,.0f} kB"
    assert same == f"{row['same_predictions']:,} of {row['test_images']:,}"


def near(cell, number):
    """Whether a cell of the README is a number to its printed digits."""
    digits = cell.split()[0].rstrip("x").replace(",", "")
    places = len(digits.partition(".")[2])
    assert float(digits) == pytest.approx(number, abs=0.51 * 10**-places), cell


LAYERS = [row for row in rows("kernels.json", "layers") if (row["batch"], row["threads"]) == (1, 1)]


@pytest.mark.parametrize("label", ["64->64", "128->128", "256->256", "512->512", "256->256 1x1", "linear 4096->4096"])
def test_layers(label):
    shape, _, kernel = label.partition(" ")
    (row, *_) = [
        r
        for r in LAYERS
        if r["name"].startswith(label if shape == "linear" else f"conv {shape} ") and (kernel or "3x3") in r["name"]
    ]
    name = row["name"].removeprefix("conv ").replace(" ", ", ") if shape != "linear" else row["name"]
    bits, floats, fp32, ratio, floats_ratio, binary = cells(name)
    near(bits, row["packed_us"]["median"] / 1000)
    near(floats, row["floats_us"]["median"] / 1000)
    near(fp32, row["fp32_us"]["median"] / 1000)
    near(ratio, row["ratio"]["median"])
    near(floats_ratio, row["floats_ratio"]["median"])
    if binary:
        near(binary, row["peers"]["openvino binary"]["ratio"]["median"])


@pytest.mark.parametrize("network", rows("networks.json", "networks"), ids=lambda network: network["name"])
def test_networks(network):
    packed, eager, frozen, peer, size, fp32_size = cells(network["name"].split()[0])
    (row,) = [
        r
        for r in rows("networks.json", "latency")
        if r["name"] == network["name"] and (r["batch"], r["threads"]) == (1, 1)
    ]
    near(packed, row["packed_us"]["median"] / 1000)
    for cell, name in ((eager, "eager"), (frozen, "frozen"), (peer, "openvino")):
        near(cell, row[name]["ratio"]["median"])
    near(size, network["file_bytes"] / 1000)
    near(fp32_size, network["fp32_bytes"] / 1000)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(blocks[0], names)
    names["x"] = names["images"].numpy()
    exec(blocks[1], names)
    assert names["y"].shape == (8, 10)


def test_files_that_it_names_are_there():
    for path in re.findall(r"(?:results|kernels)/[\w./]+", README):
        assert (ROOT / path.rstrip(".")).exists(), path
