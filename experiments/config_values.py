"""Values of a config that YAML, the command line or the environment may have got wrong: checked, and made numbers."""

import contextlib
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

# Options of which a command needs one at least.
_COUNTED = ("batch", "batch_size", "batches", "columns", "epochs", "images", "inputs", "iterations", "steps", "tokens")


class ConfigError(ValueError):
    """A value of the config that cannot be used; the message names its key and what is possible."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the most similar of the known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""


def whole_number(config: DictConfig, key: str, least: int, most: int | None = None) -> int:
    """Return the value of a key as a whole number, text of one too, and put it into the config.

    ConfigError if it is anything else, or below `least`, or above `most`.
    """
    value = OmegaConf.select(config, key)
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str | float):
        with contextlib.suppress(ValueError, OverflowError):
            number = int(value) if isinstance(value, str) or value.is_integer() else None  # 1e3 is a float in YAML
    if number is None:
        raise ConfigError(f"{key} must be a whole number, got {value!r}")
    if number < least:
        raise ConfigError(f"{key} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ConfigError(f"{key} must be at most {most}, got {number}")
    OmegaConf.update(config, key, number)
    return number


def check_command_numbers(config: DictConfig, defaults: Mapping[str, Any]) -> None:
    """Check the numbers among a command's own options, in place: those whose default is a number.

    null is left to the command. ConfigError for what is no number, is negative, or is a 0 that counts `_COUNTED`.
    """
    for key, default in defaults.items():
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        value = OmegaConf.select(config, key)
        if value is None:
            continue
        if isinstance(default, int):
            whole_number(config, key, int(key in _COUNTED))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{key} must be a number of at least 0, got {value!r}")


def check_numbers(node: Any, key: str = "") -> None:
    """Raise ConfigError for a number in a config that is none (nan)."""
    if isinstance(node, DictConfig | ListConfig):
        names: Any = node if isinstance(node, DictConfig) else range(len(node))
        for name in names:
            if not OmegaConf.is_missing(node, name):
                check_numbers(node[name], f"{key}.{name}" if key else str(name))
    elif isinstance(node, float) and math.isnan(node):
        raise ConfigError(f"{key} is nan, which is no number")
