"""Which runs are seeds of one experiment: the whole config counts, but not what says only where or how loudly it ran.

`${experiment:}` in a config is the experiment's hash, so that folders can be named by it.
"""

import hashlib
import json
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.hydra_versions import register_resolver

# Where the data lie. Not the experiment, but needed to run it again.
OF_THE_DATA = ("data.root", "data.download", "data.num_workers")

# What may differ between two runs that are the same experiment: where, how loudly, how fast and how long at a time.
NOT_THE_EXPERIMENT = (
    "hydra",
    "run_dir",
    "lock",
    "published",  # what others measured changes nothing here
    *OF_THE_DATA,
    "doctor",
    "objectives",
    "classifier.pack_activations",
    "compile",
    "classifier.compile",
    "channels_last",
    "classifier.channels_last",
    "keep_best",
    *(
        f"trainer.{name}"
        for name in (
            "accelerator",
            "benchmark",
            "default_root_dir",
            "detect_anomaly",
            "deterministic",
            "enable_checkpointing",
            "enable_model_summary",
            "enable_progress_bar",
            "inference_mode",
            "log_every_n_steps",
            "logger",
            "max_time",
            "num_sanity_val_steps",
            "profiler",
            "strategy",
        )
    ),
)

# Options that came later, and what stands for training as it was before: runs with and without are one experiment.
_AS_BEFORE: dict[str, Any] = {
    "ema": None,
    "quantizer.widths": None,
    "start.run": None,
    "start.weights": "last",
    "start.observer": None,
    "start.batches": 4,
    "stages": None,
    "classifier.step_rates": False,
    "teacher.run": None,
    "teacher.model": None,
    "teacher.weights": None,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": None,
    "trainer.gradient_clip_algorithm": "norm",
}

_RUN_DIR = "RUN_DIR"  # stands for the run's own folder in other options
_inside = threading.local()


def is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a dotted key is one of these or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def comparable(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Return the resolved config, with the seed, without NOT_THE_EXPERIMENT; numbers that are equal look equal."""
    root = config if isinstance(config, DictConfig) else OmegaConf.create(config)
    run_dir = root.get("run_dir")
    result = _plain(root, "", None if run_dir is None else str(run_dir))
    assert isinstance(result, dict)
    for section in ("start", "teacher"):
        if result.get(section) == {}:
            del result[section]
    if isinstance(result.get("model"), dict):
        result["model"] = _as_before(result["model"])
    return result


def _as_before(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's options without those that stand for what models did before they had them.

    So runs of before are the same experiments: stem was the name of the layout, and there were no int8 stems.
    """
    if model.get("stem", "fp32") != "fp32" or model.get("pixels", False) is not False:
        return model
    rest = {key: value for key, value in model.items() if key not in ("stem", "pixels", "layout")}
    return rest | ({"stem": model["layout"]} if "layout" in model else {})


def _plain(value: Any, key: str, run_dir: str | None) -> Any:
    if isinstance(value, DictConfig):
        result = {}
        for option in value:
            name = str(option)
            full = f"{key}.{name}" if key else name
            # An option that names the run's folder takes a hash of all others to resolve.
            if is_among(full, NOT_THE_EXPERIMENT):
                continue
            plain = _plain(value[option], full, run_dir)
            if full not in _AS_BEFORE or plain != _AS_BEFORE[full]:
                result[name] = plain
        return result
    if isinstance(value, ListConfig) and key == "trainer.devices":
        return len(value)  # which of them changes nothing
    if isinstance(value, ListConfig):
        return [_plain(item, key, run_dir) for item in value]
    if isinstance(value, str):
        named = run_dir is not None and "/" in run_dir and value == run_dir
        inside = named or (run_dir is not None and value.startswith(f"{run_dir}/"))
        return _RUN_DIR + value[len(run_dir) :] if run_dir is not None and inside else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)  # JSON has no such numbers
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value if value is None or isinstance(value, bool | int) else str(value)


def experiment_id(config: DictConfig | dict[str, Any]) -> str:
    """Return the hash of an experiment, 8 hexadecimal digits: equal for two runs that differ by seed alone."""
    content = {key: value for key, value in comparable(config).items() if key != "seed"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value}; a list is one value.

    >>> flat({"epochs": 3, "optimizer": {"lr": 0.1}})
    {'epochs': 3, 'optimizer.lr': 0.1}
    """
    result: dict[str, Any] = {}
    for name, value in config.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the dotted keys whose values are not the same in all configs, the seed left out.

    >>> differing([{"seed": 0, "lr": 0.1, "epochs": 3}, {"seed": 1, "lr": 0.2, "epochs": 3}])
    ['lr']
    """
    every = [flat(comparable(config)) for config in configs]
    keys = dict.fromkeys(key for one in every for key in one)
    absent = object()
    return [
        key for key in keys if key != "seed" and any(one.get(key, absent) != every[0].get(key, absent) for one in every)
    ]


def _resolve(*, _root_: DictConfig) -> str:
    if getattr(_inside, "value", False):  # an option that names the run's folder, which is named by the options
        return "${experiment:}"
    _inside.value = True
    try:
        return experiment_id(_root_)
    finally:
        _inside.value = False


register_resolver("experiment", _resolve)
