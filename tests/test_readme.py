"""The README's numbers are those of the result files, and its Python runs."""

import importlib
import json
import re
from pathlib import Path

import pytest

import bnn
from paper_figures.ledger_file import read_ledger, run_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows(name, key):
    return json.loads((ROOT / "results" / name).read_text())[key]


def runs(name):
    return run_rows(read_ledger(ROOT / "results" / name))


def cells(label):
    """The cells of the README's table row that begins with a label."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(("label", "quantizer"), [("XNOR-Net, 1/1", "xnor"), ("FP32 twin", "fp32")])
def test_accuracies_and_sizes(label, quantizer):
    (row,) = [row for row in runs("lenet5_mnist.json") if row["quantizer"] == quantizer]
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


LABELS = ["64->64", "128->128", "256->256", "512->512", "256->256 1x1", "linear 4096->4096"]


@pytest.mark.parametrize("label", LABELS)
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


def test_no_row_of_a_table_is_left_unchecked():
    """Rows with numbers are those of the tests above."""
    found = {line.split("|")[1].strip() for line in README.splitlines() if re.match(r"\|.*\d.* (ms|kB|%) \|", line)}
    networks = {network["name"].split()[0] for network in rows("networks.json", "networks")}
    layers = {label for label in found if "->" in label}
    assert found - layers == {"XNOR-Net, 1/1", "FP32 twin"} | networks
    assert len(layers) == len(LABELS)


def said(pattern):
    """The numbers of the one place where the README's text, its lines joined, matches a pattern."""
    (match,) = re.finditer(pattern, " ".join(README.split()))
    return [
        float(group.replace(",", "")) if re.fullmatch(r"[\d,]+(\.\d+)?", group) else group for group in match.groups()
    ]


def of_layer(name):
    (row,) = [row for row in LAYERS if row["name"] == name]
    return row


def test_numbers_in_sentences():
    """Every number that a sentence takes from a result."""
    mnist = runs("lenet5_mnist.json")
    assert said(r"\(60,000 images, test split of ([\d,]+), one seed") == [mnist[0]["test_images"]]
    assert {row["seed"] for row in mnist} == {0}
    content = json.loads((ROOT / "results" / "networks.json").read_text())
    cpu, version, peer, date = said(
        r"one thread of an (.+?) \(.*? PyTorch (\S+) eager .*? OpenVINO (\S+) .*?`, (\S+), with"
    )
    assert cpu == content["hardware"]["cpu"]
    assert content["versions"]["torch"].partition("+")[0] == version
    assert content["versions"]["openvino"] == peer
    assert content["finished"].startswith(date)
    assert {(row["batch"], row["threads"]) for row in content["latency"]} == {
        (b, t) for b in (1, 8, 64) for t in (1, 2)
    }
    kernels = json.loads((ROOT / "results" / "kernels.json").read_text())
    bound, reached = said(
        r"bound on this core is ([\d,]+) GMAC/s \(512 products in 1.5 cycles\); 256->256 reaches (\d+)"
    )
    assert bound == kernels["roofline"]["binary_bound_gmacs"]
    assert kernels["roofline"]["binary_macs_per_cycle_bound"] == round(512 / 1.5)
    assert reached == round(of_layer("conv 256->256 14x14 3x3")["gmacs_per_second"])
    # "2-bit activations twice the time of signs"
    for name in ("conv 64->64 56x56 3x3", "conv 256->256 14x14 3x3"):
        times = [of_layer(name + more)["packed_us"]["median"] for more in (", signs x 2 bits", "")]
        assert times[0] / times[1] == pytest.approx(2, abs=0.15)


def test_what_is_said_of_the_picture_at_the_top():
    from paper_figures.chance import within_chance

    digits = runs("digits_accuracy_vs_bits.json")
    images, points = said(r"(\d+) test images: one image is ([\d.]+) points")
    assert {row["test_images"] for row in digits} == {images}
    assert points == 100 / images
    accuracy: dict = {}
    for row in digits:
        accuracy.setdefault(row["label"], []).append(row["test_accuracy"])
    assert {len(found) for found in accuracy.values()} == {3}  # "three seeds"
    means = {label: sum(found) / 3 for label, found in accuracy.items()}
    assert all(within_chance(mean, means["32/32"], int(images)) for mean in means.values())


PAGES = [
    README,
    *(page.read_text() for page in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "kernels" / "README.md"]),
]
NAMES = {
    name
    for page in PAGES
    for code in re.findall(r"```python\n.*?```|`[^`\n]+`", page, re.S)
    for name in re.findall(r"(?<![\w./])(?:bnn|bk|bnn_kernels)(?:\.[A-Za-z_]\w*)+", code)
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_that_the_documents_use_are_there(name):
    module, *path = name.split(".")
    found = importlib.import_module({"bk": "bnn_kernels"}.get(module, module))
    for done, part in enumerate(path):
        try:
            found = getattr(found, part)
        except AttributeError:  # a submodule that nobody has imported yet
            found = importlib.import_module(".".join([found.__name__, *path[done : done + 1]]))


def test_the_documents_use_what_they_are_about():
    expected = {"bnn.quantize", "bnn.summary", "bnn.convert", "bnn.check_parity", "bk.load", "bk.pack"}
    assert expected <= NAMES


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        _ = bnn.konvert


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(blocks[0], names)
    exec(blocks[1], names)
    assert names["y"].shape == (8, 10)


def test_files_that_it_names_are_there():
    for path in re.findall(r"(?:results|kernels)/[\w./]+", README):
        assert (ROOT / path.rstrip(".")).exists(), path
