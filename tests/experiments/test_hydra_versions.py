"""What configs build is the same with both versions of Hydra that the commands run on."""

import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from bnn.quantizers import FullPrecision, SteSign
from experiments.hydra_versions import VERSION_BASE, instantiate, register_resolver, targets
from experiments.runs import fp32_twin

# The README's example of a quantized layer, by interpolation as in the commands' configs.
WHOLE = {
    "quantizer": {"input": {"_target_": "bnn.quantizers.SteSign", "_partial_": True, "clip": 1.5}},
    "model": {
        "_target_": "bnn.layers.QuantLinear",
        "in_features": 3,
        "out_features": 2,
        "input_quantizer": "${quantizer.input}",
        "weight_quantizer": "${quantizer.input}",
    },
}


def test_a_part_of_a_config_is_built_with_what_it_takes_from_the_rest():
    layer = instantiate(OmegaConf.create(WHOLE).model, _convert_="object")
    assert isinstance(layer.input_quantizer, SteSign)
    assert layer.input_quantizer.clip == 1.5


def test_a_changed_copy_of_a_part_is_what_is_built():
    config = OmegaConf.create(WHOLE)
    OmegaConf.set_struct(config, True)
    model = OmegaConf.merge(config.model, {"out_features": 5})
    model.input_quantizer = {"_target_": "bnn.quantizers.FullPrecision", "_partial_": True}
    layer = instantiate(model, _convert_="object")
    assert layer.weight.shape == (5, 3)
    assert isinstance(layer.input_quantizer, FullPrecision)
    assert isinstance(layer.weight_quantizer, SteSign)
    assert config.model.out_features == 2  # as it was
    digits = OmegaConf.create(
        {"quantizer": WHOLE["quantizer"], "model": {"_target_": "bnn.models.DigitsCNN", "input_scale": False} |
         {key: "${quantizer.input}" for key in ("weight_quantizer", "input_quantizer")}}
    )  # fmt: skip
    assert not any(isinstance(module, SteSign) for module in fp32_twin(digits.model).modules())


def test_what_a_class_raises_is_the_cause():
    for model in (WHOLE["model"] | {"out_features": -1}, {"model": WHOLE["model"] | {"out_features": -1}}):
        with pytest.raises(InstantiationException) as caught:
            instantiate(OmegaConf.create(WHOLE | {"model": model}).model, _convert_="object")
        assert isinstance(caught.value.__cause__, RuntimeError | ValueError)


def test_classes_of_ones_own_are_built_wherever_they_are_from(tmp_path, monkeypatch):
    (tmp_path / "mine_of_hydra.py").write_text(
        "from torch.nn import Identity as Same\n\n\nclass Own:\n    def __init__(self, inner):\n"
        "        self.inner = inner()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    same = {"_target_": "mine_of_hydra.Same", "_partial_": True}
    own = {"_target_": "mine_of_hydra.Own", "_partial_": True, "inner": same}
    node = {"_target_": "mine_of_hydra.Own", "inner": own}
    assert isinstance(instantiate(OmegaConf.create(node)).inner.inner, torch.nn.Identity)
    assert isinstance(instantiate({"_target_": "mine_of_hydra.Same"}), torch.nn.Identity)
    del sys.modules["mine_of_hydra"]


def test_no_config_removes_a_file(tmp_path):
    file = tmp_path / "kept"
    file.touch()
    with pytest.raises(InstantiationException, match=r"os\.remove"):
        instantiate(OmegaConf.create({"_target_": "os.remove", "path": str(file)}))
    assert file.exists()


def test_targets_of_a_config_with_values_that_are_still_missing():
    config = OmegaConf.create({"a": "???", "b": [{"_target_": "x.Y", "c": "???"}, None, "???"], "d": "${b}"})
    assert list(targets(config)) == ["x.Y", "x.Y"]


def test_a_resolver_may_be_registered_again():
    for word in ("first", "second"):
        register_resolver("of_hydra_versions", lambda word=word: word)
    assert OmegaConf.create({"a": "${of_hydra_versions:}"}).a == "second"
    OmegaConf.clear_resolver("of_hydra_versions")


def test_no_module_asks_hydra_itself():
    """Else it would run with one of the two versions alone."""
    root = Path(__file__).parent.parent.parent
    for folder in ("experiments", "paper_figures", "tests", "bnn"):
        for file in (root / folder).rglob("*.py"):
            if file.name not in ("hydra_versions.py", Path(__file__).name):
                text = file.read_text()
                assert "version_base=" not in text, file
                assert "register_new_resolver" not in text, file
                assert not any("hydra.utils" in line and "instantiate" in line for line in text.splitlines()), file
    assert set(VERSION_BASE) <= {"version_base"}
