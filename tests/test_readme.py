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


NETWORKS = [row for row in rows("lenet5_mnist_benchmark.json", "networks") if ":" not in row["name"]]
TIMES = NETWORKS + rows("lenet5_mnist_benchmark.json", "layers")


@pytest.mark.parametrize("row", [r for r in TIMES if r["threads"] == 1], ids=lambda r: f"{r['name']} {r['batch']}")
def test_times(row):
    conv = row["name"].startswith("conv")
    label = ", ".join(row["name"].split()[1:]) if conv else f"LeNet-5, batch {row['batch']}"
    packed, fp32, ratio = cells(label)
    assert float(packed.split()[0]) == pytest.approx(row["packed_us"]["median"] / 1000, rel=0.005, abs=0.00051)
    assert float(fp32.split()[0]) == pytest.approx(row["fp32_us"]["median"] / 1000, rel=0.005, abs=0.00051)
    assert float(ratio.rstrip("x")) == pytest.approx(
        row["ratio"]["median"], abs=0.51 if row["ratio"]["median"] >= 10 else 0.051
    )


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
