"""What a file holds of a step: the names, types and defaults of its attributes and tensors, each told once.

Every step has such a dataclass, `Fields`. Its constructor makes what is written, `read` checks what was read:

    spec = Pack.Fields(signed=True, multipliers=[1], thresholds=t, flip=flip, codes=codes).spec(["x"], ["r0"])

Arrays are tensors, a tuple of arrays is one tensor for each ("bits.0", "bits.1", ...). All else are attributes, which
are JSON values. A field that equals its default is not written.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from types import NoneType
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np
from numpy.typing import NDArray

from bnn_kernels import checks
from bnn_kernels.bits.half_floats import stored_bytes
from bnn_kernels.errors import PlanError

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int8 = NDArray[np.int8]
Uint8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Term(TypedDict):
    """The bit planes of one term of a weight or an input, as JSON."""

    multipliers: list[int]
    signed: bool


@dataclass
class StepSpec:
    """A step as it stands in a file.

    op: its kind. inputs, outputs: names of registers. attrs: JSON values. tensors: weights and thresholds. sources: for
    each output the place in the trained network that computes the same, such as "layer1.conv" or "layer2.conv input".
    TypeError if one of them is of another kind.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.op, str):
            raise TypeError(f"op must be a name, got {self.op!r}")
        for name in ("inputs", "outputs", "sources"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise TypeError(f"{name} must be a list of names, got {value!r}")
            setattr(self, name, list(value))
        if not isinstance(self.attrs, dict) or not all(isinstance(key, str) for key in self.attrs):
            raise TypeError(f"attrs must be a dict with names as keys, got {self.attrs!r}")
        if not isinstance(self.tensors, dict) or not all(isinstance(key, str) for key in self.tensors):
            raise TypeError("tensors must be a dict of arrays with names as keys")
        self.tensors = {
            name: checks.array(value, f"tensor {name!r}", False, writable=False) for name, value in self.tensors.items()
        }

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    @property
    def source(self) -> str:
        """The place that the first output comes from, "" if unknown."""
        return self.sources[0] if self.sources else ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file."""
        return sum(stored_bytes(name, tensor) for name, tensor in self.tensors.items())


class Declared(NamedTuple):
    """A field as it is declared: its type without None, its default, the name in a file, and the dtype of tensors."""

    name: str
    kind: Any
    default: Any
    stored: str
    dtype: np.dtype | None
    numbered: bool


@dataclass(frozen=True, kw_only=True)
class StepFields:
    """The fields of a step of kind `op`; see the module."""

    op: ClassVar[str]

    @classmethod
    @functools.cache
    def declared(cls) -> tuple[Declared, ...]:
        """Return the fields in their order."""
        types = get_type_hints(cls)
        return tuple(_declared(given, types[given.name]) for given in dataclasses.fields(cls))

    def attrs(self) -> dict[str, Any]:
        """Return the attributes as they are written."""
        values = {one: getattr(self, one.name) for one in self.declared() if one.dtype is None}
        return {one.stored: value for one, value in values.items() if one.default is MISSING or value != one.default}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors as they are written."""
        found: dict[str, np.ndarray] = {}
        for one in self.declared():
            value = getattr(self, one.name)
            if one.numbered:
                found |= {f"{one.stored}.{i}": array for i, array in enumerate(value)}
            elif one.dtype is not None and value is not None:
                found[one.stored] = value
        return found

    def spec(self, inputs: Sequence[str], outputs: Sequence[str], sources: Sequence[str] = ()) -> StepSpec:
        """Return the step that reads and writes these registers."""
        return StepSpec(self.op, list(inputs), list(outputs), self.attrs(), self.tensors(), list(sources))

    @classmethod
    def read(cls, attrs: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        """Return the fields of what a file holds; PlanError names what is missing, unknown or of another type."""
        values: dict[str, Any] = {}
        unread = dict(tensors)
        for one in cls.declared():
            if one.numbered:
                parts: list[np.ndarray] = []
                while (name := f"{one.stored}.{len(parts)}") in unread:
                    parts.append(_checked_tensor(name, unread.pop(name), one.dtype))
                values[one.name] = tuple(parts)
            elif one.dtype is not None:
                value = unread.pop(one.stored, None)
                if value is None and one.default is MISSING:
                    raise PlanError(f"tensor {one.stored!r} is missing")
                values[one.name] = None if value is None else _checked_tensor(one.stored, value, one.dtype)
            elif attrs.get(one.stored) is None and one.default is not MISSING:
                values[one.name] = one.default
            else:
                values[one.name] = _checked_attribute(one.stored, attrs.get(one.stored), one.kind)
        unknown = set(attrs) - {one.stored for one in cls.declared() if one.dtype is None}
        if unknown:
            raise PlanError(f"unknown attributes {sorted(unknown)}")
        if unread:
            raise PlanError(f"unknown tensor {min(unread)!r}")
        return cls(**values)


def numbered(stored: str) -> Any:
    """Return the default of a tuple of tensors that are written as "stored.0", "stored.1", ..."""
    return field(default=(), metadata={"stored": stored})


def _declared(given: dataclasses.Field[Any], kind: Any) -> Declared:
    options = [option for option in get_args(kind) if option is not NoneType]
    if NoneType in get_args(kind):
        (kind,) = options
    is_numbered = get_origin(kind) is tuple
    array = get_args(kind)[0] if is_numbered else kind
    dtype = np.dtype(get_args(get_args(array)[1])[0]) if get_origin(array) is np.ndarray else None
    stored = given.metadata.get("stored", given.name)
    return Declared(given.name, kind, given.default, stored, dtype, is_numbered)


def _checked_tensor(name: str, value: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if value.dtype != dtype:
        raise PlanError(f"tensor {name!r} must be {dtype}, got {value.dtype}")
    if value.dtype.kind == "f" and np.isnan(np.min(value, initial=0)):
        raise PlanError(f"tensor {name!r} holds a NaN")
    if value.dtype == np.bool_ and value.view(np.uint8).max(initial=0) > 1:
        raise PlanError(f"tensor {name!r} holds bytes that are neither false nor true")
    return value


def _checked_attribute(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise PlanError(f"unknown {name} {value!r}; known are {', '.join(get_args(kind))}")
    elif get_origin(kind) is list:
        (item,) = get_args(kind)
        of_terms = is_typeddict(item)
        if not isinstance(value, list):
            raise PlanError(f"attribute {name!r} must be a list, got {value!r}")
        for one in value:
            if not _is_item(one, item):
                raise PlanError(f"attribute {name!r}: malformed {'term' if of_terms else 'number'} {one!r}")
    elif get_origin(kind) is dict:
        if type(value) is not dict:
            raise PlanError(f"attribute {name!r} must be a dict, got {value!r}")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        raise PlanError(f"attribute {name!r} must be {kind.__name__}, got {value!r}")
    elif kind is float and not abs(value) <= LARGEST_FLOAT:
        raise PlanError(f"attribute {name!r} must be a float32, got {value!r}")
    return value


def _is_item(value: Any, kind: Any) -> bool:
    if not is_typeddict(kind):
        return type(value) is kind
    names = kind.__annotations__.keys()
    return isinstance(value, dict) and value.keys() == names and type(value["multipliers"]) is list
