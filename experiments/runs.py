"""Finished runs: where they lie and how to get a trained network back from one."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bnn.training import RunError, load_network
from experiments import cli


def load_config(folder: Path) -> DictConfig:
    """Return the resolved config of a run; RunError if the folder is none."""
    path = folder / "config.yaml"
    if not path.exists():
        raise RunError(f"{folder} is no run: it has no config.yaml. Train first: {cli.program('train')}")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def load_run(folder: Path) -> tuple[DictConfig, Any]:
    """Return (config, trained network in evaluation mode) of a run; RunError if it is not there."""
    config = load_config(folder)
    return config, load_network(instantiate(config.model, _convert_="object"), folder)


def fp32_twin(model: DictConfig) -> Any:
    """Return the same topology with FP32 layers, untrained, in evaluation mode."""
    plain = OmegaConf.create({"_target_": "bnn.quantizers.FullPrecision", "_partial_": True})
    twin = OmegaConf.merge(model, {"input_scale": False})
    twin.weight_quantizer = plain
    twin.input_quantizer = plain
    return instantiate(twin, _convert_="object").eval()


def find_results(folder: Path) -> list[Path]:
    """Return the result files under a folder, sorted; FileNotFoundError says what is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; train first, or give folder=PATH of the runs")
    found = sorted(folder.rglob("result.json"))
    if not found:
        raise FileNotFoundError(f"no finished run under {folder}: a run that is done has a result.json")
    return found
