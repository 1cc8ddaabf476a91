"""The number that was published for an experiment, which a result keeps and every report prints beside its own."""

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config_values import ConfigError

# The metrics that a number may be of: a share in [0, 1], or bits that a language model needs for a token.
METRICS = ("test_accuracy", "test_bits_per_character", "test_bits_per_byte")
# What was measured, and by what: a run with another quantizer, network or data set has no such number.
SETTING = ("quantizer", "model", "data")
KEYS = ("metric", "value", "source", *SETTING)


def check_published(config: DictConfig) -> None:
    """Raise ConfigError if `published` is neither null nor a whole entry; it names what is missing or wrong."""
    entry = OmegaConf.select(config, "published")
    if entry is None:
        return
    if not isinstance(entry, DictConfig):
        raise ConfigError(f"published is {entry!r}; it is null, or has {', '.join(KEYS)}")
    missing = [key for key in KEYS if entry.get(key) is None]
    unknown = [str(key) for key in entry if key not in KEYS]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has no option {', '.join(unknown)}"
        raise ConfigError(f"published {wrong}; it is null, or has {', '.join(KEYS)}")
    if entry.metric not in METRICS:
        raise ConfigError(f"published.metric must be one of {', '.join(METRICS)}, got {entry.metric!r}")
    value = entry.value
    most, what = (1, "a share in [0, 1]") if entry.metric == METRICS[0] else (math.inf, "bits, 0 or more")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ConfigError(f"published.value must be {what}, got {value!r}")


def published_for(config: DictConfig, data: str) -> dict[str, Any] | None:
    """Return {metric, value, source} of what was published for a run on the data set of that name.

    None if the config has nothing, or if its quantizer, network or data set is not the one that was published: so
    quantizer=fp32 on the command line does not set a recipe's number beside its FP32 twin.
    """
    entry = OmegaConf.select(config, "published")
    if entry is None:
        return None
    here = {"quantizer": config.quantizer.name, "model": config.model._target_.rpartition(".")[2], "data": data}
    if any(entry[key] != here[key] for key in SETTING):
        return None
    return {key: entry[key] for key in ("metric", "value", "source")}


def per_cent(value: float | None) -> str:
    """Return a share in per cent with the digits that it was published with, at least one; nothing for None.

    >>> per_cent(0.9923), per_cent(0.865), per_cent(None)
    ('99.23', '86.5', '')
    """
    if value is None:
        return ""
    digits = f"{100 * value:.2f}"
    return digits.removesuffix("0") if digits.endswith("0") else digits


def in_words(metric: str, value: float) -> str:
    """Return a value of a metric as tables show it: shares in per cent, bits as they are.

    >>> in_words("test_accuracy", 0.9923), in_words("test_bits_per_character", 2.1234)
    ('99.23', '2.123')
    """
    return f"{100 * value:.2f}" if metric == METRICS[0] else f"{value:.3f}"
