"""Finished runs: where they lie and how to get a trained network back from one."""

import glob
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnn.training import BEST_CHECKPOINT, CHECKPOINT, RunError, load_network
from experiments import cli
from experiments.hydra_versions import instantiate
from experiments.identity import comparable, differing, flat, is_among
from experiments.layer_widths import set_widths
from experiments.stages import is_stage

CONFIG = "config.yaml"


# What every run's config has.
_SECTIONS = ("name", "seed", "data", "model", "quantizer")


def load_config(folder: Path) -> DictConfig:
    """Return the resolved config of a run; RunError if the folder is none or the file is damaged."""
    path = folder / CONFIG
    if not path.exists():
        raise RunError(f"{folder} is no run: it has no {CONFIG}. Train first: {cli.program('train')}")
    try:
        config = OmegaConf.load(path)
        wrong = "it is not whole" if any(name not in config for name in _SECTIONS) else None
    except Exception as error:  # of the YAML library that OmegaConf takes, and OmegaConf's own
        wrong = str(error).partition("\n")[0]
    if wrong is not None:
        raise RunError(
            f"{path} is damaged; remove it, and the same command of experiments.train writes it again: {wrong}"
        )
    assert isinstance(config, DictConfig)
    return config


def find_run(folder: Path, seed: int | None = None) -> Path:
    """Return the run's folder that `folder` names.

    Itself, or the one run that lies below it; NAME/QUANTIZER/seed0 may stand for NAME/QUANTIZER/EXPERIMENT/seed0.
    seed: of the runs seed0, seed1, ... that lie directly below, those of one experiment, the one of this seed is meant.
    RunError if there is no run or more than one.
    """
    if (folder / CONFIG).exists():
        return folder
    if seed is not None and (seeds := seeds_of(folder)):
        if seed not in seeds:
            raise RunError(
                f"{folder} has runs of the seeds {', '.join(map(str, seeds))} and none of seed {seed}: train it, or "
                f"name {folder}/seed{seeds[0]} to take that one for every seed"
            )
        return folder / f"seed{seed}"
    pattern = folder.rglob(CONFIG) if folder.is_dir() else folder.parent.glob(f"*/{glob.escape(folder.name)}/{CONFIG}")
    found = sorted(path.parent for path in pattern if not is_stage(path.parent))
    if not found:
        raise RunError(f"{folder} is no run: it has no {CONFIG}. Train first: {cli.program('train')}")
    if len(found) > 1:
        configs = [comparable(load_config(run)) for run in found[:20]]
        keys = [key for key in differing(configs) if not is_among(key, ("quantizer", "model", "classifier", "data"))][
            :3
        ]
        settings = [", ".join(f"{key}={flat(config).get(key)}" for key in keys) for config in configs]
        lines = [f"{run}  {text}".rstrip() for run, text in zip(found[:20], settings, strict=True)]
        more = [f"and {len(found) - 20} more"] if len(found) > 20 else []
        raise RunError("\n  ".join([f"{folder} holds {len(found)} runs; name one of them:", *lines, *more]))
    return found[0]


def seeds_of(folder: Path) -> list[int]:
    """Return the seeds of the runs seed0, seed1, ... that lie directly in a folder, in order."""
    names = [path.parent.name for path in folder.glob(f"seed*/{CONFIG}")]
    return sorted(int(name[4:]) for name in names if name[4:].isdecimal())


def load_run(folder: Path, best: bool = False) -> tuple[DictConfig, Any]:
    """Return (config, trained network in evaluation mode) of a run; RunError if it is not there.

    best: the weights of the best validation accuracy instead of the last.
    """
    config = load_config(folder)
    network = instantiate(config.model, _convert_="object")
    set_widths(network, config)
    return config, load_network(network, folder, BEST_CHECKPOINT if best else CHECKPOINT)


def fp32_twin(model: DictConfig) -> Any:
    """Return the same topology with FP32 layers, untrained, in evaluation mode."""
    return instantiate(fp32_twin_config(model), _convert_="object").eval()


def fp32_twin_config(model: DictConfig) -> DictConfig:
    """Return the config of the same topology with FP32 layers."""
    plain = OmegaConf.create({"_target_": "bnn.quantizers.FullPrecision", "_partial_": True})
    twin = OmegaConf.merge(model, {"input_scale": False})
    twin.weight_quantizer = plain
    twin.input_quantizer = plain
    if OmegaConf.select(twin, "stem") == "int8":
        twin.stem, twin.pixels = "fp32", True  # it takes the same images
    assert isinstance(twin, DictConfig)
    return twin
