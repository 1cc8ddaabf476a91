"""What a quantizer's class says about itself for the documentation, the gallery and the tests.

Every class with a `Description` has a row in `docs/quantizers.md`, a panel in `paper_figures/quantizer_gallery.py` and
its examples tested by `tests/bnn/test_quantizers_tables.py`: a new quantizer is written in its own file alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from types import ModuleType

# Groups of the tables and of the gallery, in their order.
BINARY_INPUTS = "Binary inputs: one {-1, +1} plane"
BINARY_WEIGHTS = "Binary weights: one {-1, +1} plane"
TERNARY = "Ternary: two {0, 1} planes"
FEW_BITS = "Few bits: k planes"
GROUPS = (BINARY_INPUTS, BINARY_WEIGHTS, TERNARY, FEW_BITS)

# Where examples are worked out: eight inputs, or the weights of one filter, whose mean|W| is 0.875.
EXAMPLE_INPUTS = (-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Example:
    """Values worked out by hand, in evaluation, at EXAMPLE_INPUTS.

    values: q(x). gradient: dq/dx for an upstream gradient of 1 everywhere; None where it passes through statistics of
    the filter, so that finite differences have to test it. options: what the constructor is given beside what a layer
    knows (channels, channel_axis, fan_in). learned: values of parameters and buffers.
    """

    values: tuple[float, ...]
    gradient: tuple[float, ...] | None
    options: Mapping[str, object] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """How the gallery draws the class.

    options, learned: as for Example. schedule: an option of the constructor and its values, one line each, the
    strongest last. note: what is said below the method. training: drawn in training mode. dots: the value of a weight
    depends on others so much that no line connects neighbours.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    schedule: tuple[str, tuple[float, ...]] | None = None
    note: str = ""
    training: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Description:
    """A class's row in the tables, its panel in the gallery and its examples.

    group: one of GROUPS. method, year: where it was published first. forward, gradient: formulas in plain text.
    published: accuracies and where they were read, "-" for none at hand. storage: the scale of binary and ternary
    weights, the planes of few bits; "" for binary inputs. ValueError for an unknown group.
    """

    group: str
    method: str
    year: int | None
    forward: str
    gradient: str
    examples: tuple[Example, ...]
    storage: str = ""
    published: str = "-"
    panel: Panel = Panel()

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(map(repr, GROUPS))}, got {self.group!r}")


def describe(cls: type) -> Description | None:
    """Return a class's own description, not one that it inherits; None if it has none."""
    found = vars(cls).get("description")
    return found if isinstance(found, Description) else None


def described(module: ModuleType) -> list[type]:
    """Return the classes with a description that a module exports, by group, year (none last) and name."""
    found = {value: text for value in vars(module).values() if isinstance(value, type) and (text := describe(value))}

    def place(cls: type) -> tuple[int, float, str]:
        year = found[cls].year
        return GROUPS.index(found[cls].group), inf if year is None else year, cls.__name__

    return sorted(found, key=place)
