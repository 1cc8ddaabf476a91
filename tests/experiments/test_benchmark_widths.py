"""Latency by bits on tiny layers and networks: every width is checked and timed, no peer only seems to be INT8."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from experiments import int8_peers, network_peers
from experiments.widths import Width, rises

QUICK = ("seconds=0.05", "least_calls=1", "widths=[1/1,t/2,8/8,4/32]")


@pytest.fixture
def _no_peers(monkeypatch):
    monkeypatch.setattr(network_peers, "has_openvino", lambda: False)
    monkeypatch.setattr(int8_peers, "missing", lambda name: f"{name} is not here")


def measured(command, file, *arguments):
    done = command("experiments.benchmark", *QUICK, *arguments, f"output={file}")
    assert done.status == 0, done.err
    content = json.loads(file.read_text())
    assert {"command", "versions", "hardware", "kernels"} <= set(content)
    for row in content["rows"]:
        assert row["threads"] == 1
        assert [entry["width"] for entry in row["widths"]] == ["1/1", "t/2", "8/8", "4/32"]
        for entry in (*row["widths"], *row["peers"].values()):
            us = entry["us"]
            assert 0 < us["best"] <= us["low_quartile"] <= us["median"] <= us["high_quartile"]
            eager = row["peers"]["eager"]["us"]["median"]
            assert entry["ratio"]["median"] == pytest.approx(eager / us["median"], rel=0.1, abs=0.02)
        bits, products, floats = (row["widths"][i]["kernels"] for i in (0, 2, 3))
        assert bits and products and not floats
        assert {name: name + " is not here" for name in int8_peers.NEEDED}.items() <= row["left_out"].items()
    return content["rows"], done.out


@pytest.mark.usefixtures("_no_peers")
def test_layers_at_all_widths(command, tmp_path):
    depthwise = "{in: 8, out: 8, size: 5, kernel: 3, groups: 8}"
    variants = f"variants=[{{in: 16, out: 8, size: 0, kernel: 1, batch: [3, 2]}},{depthwise}]"
    rows, said = measured(
        command, tmp_path / "widths.json", "suite=widths", "threads=[1]", "layers=[[8,8,5,3]]", variants
    )
    assert [(row["name"], row["batch"]) for row in rows] == [
        ("conv 8->8 5x5 3x3", 1),
        ("linear 16->8", 3),
        ("linear 16->8", 2),
        ("conv 8->8 5x5 3x3 8 groups", 1),
    ]
    assert rows[3]["widths"][0]["kernels"] == ["Depthwise"]
    # Weights of 8 bits take eight times those of one, of four bits behind floats half of that.
    one, eight, four = (rows[0]["widths"][i]["nbytes"] for i in (0, 2, 3))
    assert eight - one == pytest.approx(7 * 8 * 8 * 9 / 8, abs=200)
    assert four < eight
    assert "openvino int8 is left out: openvino int8 is not here" in said


@pytest.mark.usefixtures("_no_peers")
def test_networks_at_all_widths(command, tmp_path):
    rows, _ = measured(command, tmp_path / "widths.json", "suite=network_widths", "networks=[digits_cnn]")
    assert [(row["name"], row["batch"]) for row in rows] == [("DigitsCNN", 1)]


@pytest.mark.usefixtures("_no_peers")
def test_what_is_wrong_is_not_timed(command, monkeypatch):
    import bnn

    right = bnn.convert

    def wrong(model, images):
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.neg_()
        packed = right(model, images)
        with torch.no_grad():
            model[1].weight.neg_()
        return packed

    monkeypatch.setattr(bnn, "convert", wrong, raising=False)
    with pytest.raises(RuntimeError, match="at 1/1 is wrong, so there is nothing to time"):
        command("experiments.benchmark", "suite=widths", *QUICK, "layers=[[8,8,5,3]]", "variants=[]", "output=null")


def test_a_width_that_is_none_is_named(command):
    failed = command("experiments.benchmark", "suite=widths", "widths=[9/1]", "output=null")
    assert (failed.status, "such as 4/8 or t/8; got '9/1'" in failed.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "bits"), [("1/1", (1, 1)), ("t/8", (np.log2(3), 8)), ("8/32", (8, 32)), ("32/32", (32, 32))]
)
def test_widths(text, bits):
    width = Width.parse(text)
    assert (width.name, width.bits) == (text, pytest.approx(bits))
    weight, given = (factory() for factory in width.quantizers().values())
    assert (weight.bits, given.bits) == (2 if text[0] == "t" else bits[0], bits[1])


def test_what_rises():
    found = rises({"1/1": 1.0, "2/2": 3.0, "4/4": 2.0, "8/2": 2.95, "1/32": 9.6, "32/32": 6.0})
    assert [(pair["fewer"], pair["more"], pair["ratio"]) for pair in found] == [
        ("1/32", "32/32", 1.6),
        ("2/2", "4/4", 1.5),
    ]
    assert rises({"1/8": 2.0, "8/1": 1.05, "t/1": 1.04, "1/1": 1.08}) == []
    assert [pair["fewer"] for pair in rises({"t/1": 2.0, "2/1": 1.0})] == ["t/1"]


# -- engines in 8 bits ------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(8 * 36, 5)).eval()


IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", int8_peers.NEEDED)
def test_an_engine_runs_all_layers_in_8_bits(name):
    for library in int8_peers.NEEDED[name]:
        pytest.importorskip(library)
    peer = int8_peers.make_int8_peer(name, network(), IMAGES[:2], IMAGES, 1)
    assert (peer.layers, peer.int8_layers) == (3, 3)
    assert peer.correlation > 0.99
    assert np.shape(peer.run()) == (2, 5)


@pytest.mark.parametrize(
    ("int8_layers", "factor", "words"),
    [(0, 1.0, "quantized none of 3 layers: nothing to time"), (3, -1.0, "answers otherwise"), (2, 1.0, None)],
)
def test_an_engine_that_only_seems_to_be_int8_is_found_out(int8_layers, factor, words, monkeypatch):
    def make(model, images, calibration, threads):
        return lambda x: factor * model(torch.from_numpy(x)).detach().numpy(), 3, int8_layers

    monkeypatch.setitem(int8_peers._MAKERS, "openvino int8", make)
    if words is None:
        peer = int8_peers.make_int8_peer("openvino int8", network(), IMAGES[:2], IMAGES, 1)
        assert (peer.int8_layers, peer.correlation) == (2, 1.0)
        return
    with pytest.raises(RuntimeError, match=words):
        int8_peers.make_int8_peer("openvino int8", network(), IMAGES[:2], IMAGES, 1)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "onnx and onnxruntime not installed: pip install" in int8_peers.missing("onnxruntime int8")
    assert int8_peers.versions() == {}
