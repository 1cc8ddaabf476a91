"""Quantizers by name: the files of configs/quantizer, read without Hydra, and pairs for a number of bits."""

import difflib
import functools
import importlib
from functools import partial
from pathlib import Path
from typing import Any

from bnn.quantizers import FullPrecision, LsqActivation, LsqWeight, SteSign, XnorWeight

_ROOM = Path(__file__).resolve().parent.parent
# In an installed package, and in a clone.
_FOLDERS = (_ROOM / "bitplanes" / "configs" / "quantizer", _ROOM / "configs" / "quantizer")

FLOAT_BITS = 32


@functools.cache
def _files() -> dict[str, Path]:
    for folder in _FOLDERS:
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    raise FileNotFoundError(
        f"the quantizers' configs are neither in {_FOLDERS[0]} nor in {_FOLDERS[1]}: install the package again"
    )


def preset_names() -> list[str]:
    """Return the names of all presets: those of the files of configs/quantizer."""
    return list(_files())


def preset_comment(name: str) -> str:
    """Return the first line of a preset's file, which says what it is: "1/1: XNOR-Net, ..."."""
    return _file(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def preset(name: str) -> dict[str, Any]:
    """Return the options of a preset for `bnn.quantize`: weight_quantizer, input_quantizer, input_scale.

    ValueError, with the names that come close, for one that does not exist.
    """
    config = _read(name)
    return {
        "weight_quantizer": _factory(config["weight"]),
        "input_quantizer": _factory(config["input"]),
        "input_scale": bool(config.get("input_scale", False)),
    }


def _file(name: str) -> Path:
    files = _files()
    if name not in files:
        close = difflib.get_close_matches(name, files, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? There are" if close else "there are"
        raise ValueError(f"no preset of quantizers is called {name!r}; {hint}: {', '.join(files)}")
    return files[name]


def _read(name: str) -> dict[str, Any]:
    """Return a file's keys over those of the files that its `defaults` name."""
    import yaml  # a network that names its quantizers needs none

    found = yaml.safe_load(_file(name).read_text(encoding="utf-8"))
    config: dict[str, Any] = {}
    for parent in found.pop("defaults", []):
        if parent != "_self_":
            config |= _read(parent)
    return config | found


def _factory(config: dict[str, Any]) -> Any:
    """Return what Hydra would make of a `_target_` with `_partial_: true`."""
    module, _, name = config["_target_"].rpartition(".")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    return partial(getattr(importlib.import_module(module), name), **arguments)


def _check_bits(bits: Any, name: str) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not (1 <= bits <= 8 or bits == FLOAT_BITS):
        raise ValueError(
            f"{name} must be 1 to 8, or {FLOAT_BITS} for floats, got {bits!r}; ternary ones are the presets 'twn', "
            "'ttq', 'tbn' and 'bitnet'"
        )


def weights_of(bits: int, name: str = "weight_bits") -> Any:
    """Return a factory of weights: XNOR-Net's for 1 bit, LSQ's for 2 to 8, floats for 32; ValueError for others."""
    _check_bits(bits, name)
    if bits == FLOAT_BITS:
        return FullPrecision
    return XnorWeight if bits == 1 else partial(LsqWeight, bits=bits)


def inputs_of(bits: int, signed: bool = True, name: str = "activation_bits") -> Any:
    """Return a factory of inputs: signs for 1 bit, LSQ's for 2 to 8, floats for 32; ValueError for others.

    signed: whether the inputs can be negative.
    """
    _check_bits(bits, name)
    if bits == FLOAT_BITS:
        return FullPrecision
    return SteSign if bits == 1 else partial(LsqActivation, bits=bits, signed=signed)
