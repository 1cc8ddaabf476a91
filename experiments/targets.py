"""Objects from configs: every `_target_` is checked before it is built, and a mistake names its key and the way out.

A config says what to build by `_target_`, the dotted name of a class, and the class's arguments beside it.
"""

import importlib
import inspect
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.config_values import ConfigError, did_you_mean
from experiments.hydra_versions import instantiate

_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def _locate(target: str, key: str) -> Any:
    """Return what a dotted name stands for: attributes, and modules that are not imported yet."""
    first, *parts = target.split(".")
    value = _import(first, target, key)
    if value is None:
        raise ConfigError(
            f"{key}: _target_ {target}: there is no module {first!r} to import; a file {first}.py of your own is "
            "found in the folder where the command starts, or on PYTHONPATH"
        )
    for depth, part in enumerate(parts, 1):
        where = ".".join([first, *parts[: depth - 1]])
        inner = getattr(value, part, None)
        if inner is None and inspect.ismodule(value):
            inner = _import(f"{where}.{part}", target, key)
        if inner is None:
            known = [name for name in dir(value) if not name.startswith("_")]
            hint = did_you_mean(part, known) or f" It has {', '.join(known)}"
            raise ConfigError(f"{key}: _target_ {target}: {where} has no {part!r}.{hint}")
        value = inner
    return value


def _import(name: str, target: str, key: str) -> Any:
    """Return a module, or None if there is none of this name; ConfigError if it is there and fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise ConfigError(f"{key}: importing {name} for _target_ {target} fails: {error}") from error
    except Exception as error:  # whatever a module of the user's does
        raise ConfigError(f"{key}: importing {name} for _target_ {target} fails: {error!r}") from error


def _check_target(node: DictConfig, key: str) -> None:
    target = _locate(str(node._target_), key)
    if not callable(target):
        raise ConfigError(f"{key}: _target_ {node._target_} is no class or function")
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # of some built-in callables nothing is known
        return
    given = [str(name) for name in node if name not in _HYDRA_KEYS]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    takes = f"it takes {', '.join(names) or 'nothing'}"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in names:
                raise ConfigError(
                    f"{key}: {node._target_} has no argument {name!r}.{did_you_mean(name, names)} {takes.capitalize()}"
                )
    for parameter in named:
        value = node[parameter.name] if parameter.name in given else None
        if isinstance(value, str | bool) and _takes_numbers_alone(parameter):
            raise ConfigError(
                f"{key}.{parameter.name} must be a number, got {value!r} (text of the environment becomes one by "
                "${oc.decode:${oc.env:NAME}})"
            )
    if not node.get("_partial_", False) and "_args_" not in node:
        missing = [p.name for p in named if p.default is p.empty and p.name not in given]
        if missing:
            raise ConfigError(f"{key}: {node._target_} needs {', '.join(missing)}; {takes}")


def _takes_numbers_alone(parameter: inspect.Parameter) -> bool:
    """Return whether an argument's default is a number and its annotation speaks of no text."""
    number = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
    annotation = parameter.annotation if isinstance(parameter.annotation, str) else repr(parameter.annotation)
    return number and not any(word in annotation for word in ("str", "bool", "Literal", "Any"))


def check(node: Any, key: str) -> None:
    """Raise ConfigError for a `_target_` in a config that is not there, and for arguments that it does not take."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            _check_target(node, key)
        for name in node:
            check(node[name], f"{key}.{name}")
    elif isinstance(node, ListConfig):
        for index, entry in enumerate(node):
            check(entry, f"{key}[{index}]")


def build(config: DictConfig, key: str) -> Any:
    """Return the object that stands under a key of the config, None if nothing does; ConfigError if it cannot be."""
    node = OmegaConf.select(config, key)
    if node is None:
        return None
    check(node, key)
    try:
        return instantiate(node, _convert_="object")
    except InstantiationException as error:
        cause = error.__cause__
        if type(cause) in (ValueError, RuntimeError):
            raise ConfigError(f"{key}: {cause}") from cause
        if type(cause) in (TypeError, AttributeError, KeyError, IndexError, ZeroDivisionError):
            raise ConfigError(f"{key}: {node.get('_target_', '')} fails: {type(cause).__name__}: {cause}") from cause
        if isinstance(cause, ModuleNotFoundError):
            target = str(node.get("_target_", ""))
            advice = (
                "pip install 'bitplanes[loggers]'" if target.startswith("lightning.pytorch.loggers.") else str(cause)
            )
            raise ConfigError(f"{key}: {target} needs a package that is not installed: {advice}") from None
        raise (cause or error) from None
