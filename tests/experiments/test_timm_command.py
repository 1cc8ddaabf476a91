"""experiments.timm: its policies are ones that bnn.quantize takes, and what each outcome is called."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import bnn
from experiments import cli, timm

CONFIG = OmegaConf.load(cli.CONFIGS / "timm.yaml")


def test_there_are_twenty_architectures():
    assert len(CONFIG.architectures) == 20 and all(size % 32 == 0 for size in CONFIG.architectures.values())


@pytest.mark.parametrize(("name", "bits"), [("8/8", (8, 8)), ("4/8", (4, 8)), ("1/1", (1, 1))])
def test_policies_quantize_to_the_bits_that_they_name(name, bits):
    policy = timm.policies(CONFIG)[name]
    network = bnn.quantize(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), **policy)
    quantized = network[1]
    x = torch.randn(64, 4)
    assert (quantized.weight_quantizer.planes(quantized.weight).bits, quantized.input_quantizer.planes(x).bits) == bits


def test_only_what_is_chosen_is_tried():
    assert list(timm.policies(OmegaConf.merge(CONFIG, {"chosen": ["1/1"]}))) == ["1/1"]
    assert timm.policies(CONFIG)["FP32"] == {}


def test_outcomes():
    row = {"parity": True, "missed": [], "first_difference": None, "agreement": 1.0}
    assert timm.outcome(row) == "agrees"
    assert timm.outcome({**row, "missed": ["fc: floats"]}) == "in floats: fc: floats"
    assert "99.0%" in timm.outcome({**row, "parity": False, "agreement": 0.99})
    assert timm.outcome({**row, "parity": False, "first_difference": "fc"}) == "differs first at fc"
    assert timm.outcome({"refused": "why"}) == "refused: why"
