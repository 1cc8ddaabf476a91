"""A plan as the header and tensors of a packed file, and back."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.half_floats import FLOATS, narrowed, widened
from bnn_kernels.errors import PackedFileError
from bnn_kernels.model import file_format
from bnn_kernels.model.state import StateSpec
from bnn_kernels.steps.fields import StepSpec


class Saved(NamedTuple):
    """What a file holds: shapes of the inputs, steps, (register, shape) of the outputs, versions and notes.

    dtypes: of the inputs; None is float32. states: of a network that computes step by step. batch_axes: of the outputs;
    None is 0.
    """

    inputs: Sequence[tuple[int, ...]]
    steps: Sequence[StepSpec]
    outputs: Sequence[tuple[str, tuple[int, ...]]]
    info: dict[str, Any]
    versions: dict[str, str]
    dtypes: Sequence[str] | None = None
    states: Sequence[StateSpec] = ()
    batch_axes: Sequence[int] | None = None


# Smaller tensors than this are stored each by itself: a name in the header is as long.
LEAST_SHARED_BYTES = 256


def _shared(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Return the names of tensors that equal another one, with its name: positions and masks of every layer.

    Only of those that begin alike the rest is read, for it may still lie in a file.
    """
    alike: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.nbytes >= LEAST_SHARED_BYTES:
            begin = tensor.reshape(-1)[: LEAST_SHARED_BYTES // tensor.itemsize].tobytes()
            alike.setdefault((tensor.dtype.str, tensor.shape, begin), []).append(name)
    shared = {}
    for names in alike.values():
        first: dict[bytes, str] = {}
        for name in names if len(names) > 1 else ():
            content = hashlib.sha256(np.ascontiguousarray(tensors[name]).data).digest()
            if (same := first.setdefault(content, name)) != name:
                shared[name] = same
    return shared


def stored(steps: Sequence[StepSpec]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors that a file of these steps stores, by name, and the names that share one of them."""
    tensors = {
        f"{i}.{name}": narrowed(tensor) if name == FLOATS else tensor
        for i, spec in enumerate(steps)
        for name, tensor in spec.tensors.items()
    }
    shared = _shared(tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in shared}, shared


def write(path: str | os.PathLike[str], saved: Saved) -> None:
    """Write a packed file, whole or not at all."""
    steps = [
        {
            "op": spec.op,
            "inputs": spec.inputs,
            "outputs": spec.outputs,
            "attrs": spec.attrs,
            "tensors": sorted(spec.tensors),
            "sources": spec.sources,
        }
        for spec in saved.steps
    ]
    header: dict[str, Any] = {
        "inputs": [list(shape) for shape in saved.inputs],
        "outputs": [[register, list(shape)] for register, shape in saved.outputs],
        "steps": steps,
        "versions": saved.versions,
        "info": saved.info,
    }
    if saved.dtypes is not None and any(dtype != "float32" for dtype in saved.dtypes):
        header["dtypes"] = list(saved.dtypes)
    if saved.states:
        header["states"] = [state.header() for state in saved.states]
    if saved.batch_axes is not None and any(saved.batch_axes):
        header["batch_axes"] = list(saved.batch_axes)
    tensors, shared = stored(saved.steps)
    if shared:
        header["shared"] = shared
    file_format.write(path, header, tensors)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"expected a list of names, got {value!r}")
    return list(value)


def read(path: str | os.PathLike[str]) -> Saved:
    """Return what a packed file holds, its tensors still in the file; PackedFileError if it is damaged."""
    header, tensors = file_format.read(path)
    try:
        shared = dict(header.get("shared", {}))
        if not shared.keys().isdisjoint(tensors):
            raise ValueError(f"tensors are both stored and shared: {sorted(shared.keys() & tensors.keys())}")
        tensors |= {name: tensors[same] for name, same in shared.items()}
        steps = []
        for index, step in enumerate(header["steps"]):
            own: dict[str, np.ndarray] = {name: tensors.pop(f"{index}.{name}") for name in _names(step["tensors"])}
            if FLOATS in own:
                own[FLOATS] = widened(own[FLOATS])
            registers = _names(step["inputs"]), _names(step["outputs"])
            steps.append(StepSpec(str(step["op"]), *registers, dict(step["attrs"]), own, _names(step["sources"])))
        inputs = [tuple(shape) for shape in header["inputs"]]
        outputs = [(str(register), tuple(shape)) for register, shape in header["outputs"]]
        dtypes = _names(header["dtypes"]) if "dtypes" in header else None
        states = [StateSpec.read(found) for found in header.get("states", [])]
        axes = list(header["batch_axes"]) if "batch_axes" in header else None
        saved = Saved(inputs, steps, outputs, dict(header["info"]), dict(header["versions"]), dtypes, states, axes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackedFileError(f"{path}: malformed header: {error!r}") from None
    if tensors:
        raise PackedFileError(f"{path}: tensor {min(tensors)!r} belongs to no step")
    return saved
