"""What Hydra 1.3 with OmegaConf 2.3 calls otherwise than Hydra 1.4 with OmegaConf 2.4; both run the commands."""

import copy
import pydoc
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hydra
import hydra.utils
import omegaconf
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_IS_1_3 = hydra.__version__.startswith("1.3.")

# For hydra.main, hydra.initialize and the like: 1.3 asks for it, 1.4 knows one behaviour and warns of the argument.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if _IS_1_3 else {}


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Let ${NAME:...} in configs be what a function returns, in the place of an earlier one."""
    # 2.3 has an older kind of function under the name that 2.4 gives to the newer.
    word = "register_new_resolver" if omegaconf.__version__.startswith("2.3.") else "register_resolver"
    getattr(OmegaConf, word)(name, resolver, replace=True)


def instantiate(node: Any, **options: Any) -> Any:
    """Return hydra.utils.instantiate(node, **options): what a config names by `_target_`, whatever package it is of.

    InstantiationException, whose cause is what the class raised, which 1.4 raises bare. 1.4 also asks the caller what a
    config may name. Classes of one's own are the point here, so those that it names it may, with all of their packages,
    but nothing of Python's own library, of which 1.3 refuses os.remove and the like.
    """
    if not _IS_1_3:
        options["_execution_whitelist_"] = sorted(_allowed([*targets(node), *targets(options)]))
        node = _alone(node)
    try:
        return hydra.utils.instantiate(node, **options)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        raise InstantiationException(f"Error in instantiating a config:\n{error!r}") from error


def _allowed(names: Iterable[str]) -> set[str]:
    """Return patterns for names, for their packages, and for the packages of what other packages have under them."""
    allowed = set()
    for name in names:
        try:
            home = getattr(pydoc.locate(name), "__module__", None)
        except pydoc.ErrorDuringImport:  # which whoever builds it will tell
            home = None
        packages = {word.partition(".")[0] for word in (name, home or name)}
        if not packages & sys.stdlib_module_names:
            allowed |= {name, *(f"{package}.*" for package in packages)}
    return allowed


def _alone(node: Any) -> Any:
    """Return a resolved copy of a config, without the one above it.

    1.4 looks for a node's place in that one, where something else stands if the node is a changed copy.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    above = node._get_parent()
    node = copy.deepcopy(node)
    node._set_flag(["allow_objects", "struct", "readonly"], [True, False, False])
    node._set_parent(above)
    OmegaConf.resolve(node)
    node._set_parent(None)
    return node


def targets(node: Any) -> Iterator[str]:
    """Names of every `_target_` in a config and what it holds.

    >>> sorted(targets({"_target_": "a.B", "c": [{"_target_": "d.E", "f": 1}]}))
    ['a.B', 'd.E']
    """
    if (isinstance(node, DictConfig) and node._is_missing()) or node is None:
        return
    if isinstance(node, dict | DictConfig):
        for key in node:
            if isinstance(node, DictConfig) and OmegaConf.is_missing(node, key):
                continue
            if key == "_target_":
                yield str(node[key])
            else:
                yield from targets(node[key])
    elif isinstance(node, list | tuple | ListConfig):
        for index in range(len(node)):
            if not (isinstance(node, ListConfig) and OmegaConf.is_missing(node, index)):
                yield from targets(node[index])
