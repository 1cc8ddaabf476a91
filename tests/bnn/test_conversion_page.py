"""The page about conversion: its examples run, and its rules do what it says."""

import re
from pathlib import Path

import torch

import bnn
from bnn.converter import registry

PAGE = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()


def test_the_examples_run(capsys):
    names: dict = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block, names)
        assert names["report"].ok, str(names["report"])
        steps = names["packed"].steps
        assert [step.op for step in steps] == ["float_conv", "binary_conv", "unpack", "float_conv"]
        assert steps[1].attrs["multipliers"] == [1, -1]

        class Network(torch.nn.Module):
            def forward(self, x):
                return torch.nn.functional.conv2d(names["Binarize"].apply(x), torch.ones(2, 3, 1, 1))

        packed = bnn.convert(Network().eval(), torch.randn(1, 3, 4, 4))
        assert [step.op for step in packed.steps] == ["pack", "binary_conv"]
        assert packed.steps[0].attrs["multipliers"] == [1]
        assert "predictions agree" in capsys.readouterr().out
    finally:
        for name in ("ThreeLevels", "SignConv"):
            registry._MODULES.pop(names.get(name), None)
        registry._FUNCTIONS.pop(names.get("Binarize"), None)


def test_methods_that_it_names_are_there():
    for name in re.findall(r"build\.(\w+)", PAGE):
        assert callable(getattr(bnn.converter.Builder, name)), name
