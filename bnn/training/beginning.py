"""Training that begins with the weights of another network instead of random ones."""

from torch import nn

from bnn.quantizers.base import Quantizer


def begin_with(network: nn.Module, source: nn.Module) -> None:
    """Give a network the parameters and buffers of another one of the same shape, whose quantizers may be others.

    A quantizer of the same kind and options (the same repr) keeps what it has learned, another one begins as new.
    ValueError, naming them, for other weights that one of the two has not or has in another shape. A network with a
    method `begin_with(source)` of its own, such as one that wraps another, is left to it.
    """
    own_way = getattr(network, "begin_with", None)
    if callable(own_way):
        own_way(source)
        return
    theirs = dict(source.named_modules())
    old = _prefixes(source)
    fresh = tuple(
        f"{name}."
        for name, module in network.named_modules()
        if isinstance(module, Quantizer) and repr(module) != repr(theirs.get(name))
    )
    own, given = network.state_dict(), source.state_dict()
    taken = {name for name in own if not name.startswith(fresh)}
    wrong = [name for name in own if name in taken and (name not in given or given[name].shape != own[name].shape)]
    wrong += [name for name in given if name not in own and not name.startswith(old)]
    if wrong:
        names = ", ".join(wrong[:3]) + (" and more" if len(wrong) > 3 else "")
        raise ValueError(
            f"{type(network).__name__} cannot begin with the weights of {type(source).__name__}: {names} are not in "
            "both, or have other shapes; only quantizers may differ"
        )
    network.load_state_dict({name: given[name] if name in taken else value for name, value in own.items()})


def _prefixes(network: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Quantizer))
