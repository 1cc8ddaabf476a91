"""The packed file: safetensors with a JSON header, checked by SHA-256 before anything in it is believed.

Layout (version 2). The safetensors metadata holds
    "format"   "bitplanes"
    "version"  "2"
    "header"   JSON: {"inputs": [shape], "outputs": [[register, shape]],
               "steps": [{"op", "inputs", "outputs", "attrs", "tensors", "sources"}], "versions", "info"},
               "dtypes": ["uint8" or "float32"] of the inputs if one is of bytes, "states" of a network that has them,
               "batch_axes": [axis] of the outputs if the batch is not the first axis of all, and "shared": {name: name}
               of tensors that equal another one, which alone is stored
    "sha256"   over the header text, the table of tensors (names, dtypes, shapes, places) and the payload
and tensor `name` of step i is stored as "i.name".
Version 1 knew one input and output of a plan and one output of a step.

Weights are dense bits, 1 bit a weight and plane (`dense_bits`). Of float layers they are F32, or, where all their
numbers are such, F16 or bfloat16, whose bits are stored as U16.
"""

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy

from bnn_kernels.errors import PackedFileError
from bnn_kernels.runtime.mapped import release

FORMAT = "bitplanes"
VERSION = "2"

# The kinds of tensors in packed files, by their names in safetensors.
DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "U16": np.uint16,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# A header beyond this is no model's (safetensors has the same limit).
LARGEST_HEADER = 100_000_000
HASHED_AT_A_TIME = 1 << 20


def digest_of(header: str, table: dict[str, Any], payload: memoryview | bytes) -> str:
    """Return the SHA-256 over header, table of tensors and payload, as hex digits."""
    digest = hashlib.sha256(header.encode())
    digest.update(json.dumps(table, sort_keys=True).encode())
    # Of a mapped file, only a block at a time stays in memory.
    for first in range(0, len(payload), HASHED_AT_A_TIME):
        block = payload[first : first + HASHED_AT_A_TIME]
        digest.update(block)
        release(np.frombuffer(block, np.uint8))
    return digest.hexdigest()


def write(path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write a packed file to a temporary name beside `path`, then rename it: an old file stays whole until then."""
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    plain = safetensors.numpy.save(arrays, {"format": FORMAT})
    size = int.from_bytes(plain[:8], "little")
    table = json.loads(plain[8 : 8 + size])
    table.pop("__metadata__")
    digest = digest_of(text, table, memoryview(plain)[8 + size :])
    blob = safetensors.numpy.save(arrays, {"format": FORMAT, "version": VERSION, "header": text, "sha256": digest})
    target = Path(path)
    # A name of its own and of this process, short enough wherever `path` is.
    temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        _replace(target, temporary, blob)
    except OSError as error:
        if error.errno is None:
            raise
        why = f"the packed model cannot be saved: {error.strerror}"
        if not target.parent.is_dir():
            why = f"the packed model cannot be saved: there is no folder {target.parent}, make it first"
        raise type(error)(error.errno, why, str(target)) from None


def _replace(target: Path, temporary: Path, blob: bytes) -> None:
    """Write a file under a temporary name and give it its own."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    try:
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _parse(text: str | bytes) -> Any:
    """Return JSON values; ValueError on NaN, names that stand twice, and nesting without end."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _map(path: str | os.PathLike[str]) -> memoryview:
    """Return the bytes of a file, mapped: pages are read when they are used, and cannot be written to."""
    with open(os.fspath(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise PackedFileError(f"{path}: {size} bytes, too short for a packed model; it was cut off. Convert again")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def _tensors(path: str | os.PathLike[str], table: dict[str, Any], payload: memoryview) -> dict[str, np.ndarray]:
    """Return views of the payload; PackedFileError if the table does not describe it to the byte."""
    entries = []
    for name, entry in table.items():
        try:
            dtype = np.dtype(DTYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            first, last = entry["data_offsets"]
            good = all(type(v) is int and v >= 0 for v in (*shape, first, last))
            good = good and last - first == math.prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise PackedFileError(f"{path}: tensor {name!r} has a malformed entry in the table of tensors")
        entries.append((first, last, name, dtype, shape))
    total = max((last for _, last, *_ in entries), default=0)
    if total != len(payload):
        raise PackedFileError(f"{path}: {len(payload)} bytes of tensors, the header says {total}: cut off?")
    found, end = {}, 0
    for first, last, name, dtype, shape in sorted(entries, key=lambda entry: entry[:3]):
        if first != end:
            raise PackedFileError(f"{path}: tensor {name!r} overlaps another one or leaves a gap before it")
        array = np.frombuffer(payload[first:last], np.uint8).view(dtype).reshape(shape)
        found[name] = array if array.flags.aligned else array.copy()
        end = last
    return found


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (header, tensors). FileNotFoundError, or PackedFileError that says what is wrong with the file.

    The tensors are views of the mapped file and cannot be written to.
    """
    blob = _map(path)
    size = int.from_bytes(blob[:8], "little")
    try:
        if size > min(len(blob) - 8, LARGEST_HEADER):
            raise ValueError("longer than the file")
        table = _parse(bytes(blob[8 : 8 + size]))
        metadata = table.pop("__metadata__", {})
        found_format, version, header, digest = (metadata.get(n) for n in ("format", "version", "header", "sha256"))
    except (ValueError, TypeError, AttributeError):
        raise PackedFileError(
            f"{path} is not a packed model, or its header is damaged or cut off. Convert the run again"
        ) from None
    if found_format != FORMAT:
        raise PackedFileError(f"{path} is a safetensors file, but not a packed model (no format {FORMAT!r})")
    if version != VERSION:
        raise PackedFileError(
            f"{path} has format version {version!r}, this library reads {VERSION!r}. "
            "Convert the run again with this version, or install the version that wrote it"
        )
    payload = blob[8 + size :]
    tensors = _tensors(path, table, payload)
    try:
        matches = digest_of(header, table, payload) == digest
    except (AttributeError, UnicodeError):
        matches = False
    if not matches:
        raise PackedFileError(f"{path}: the SHA-256 does not match, the file is damaged. Copy or convert it again")
    try:
        return _parse(header), tensors
    except ValueError as error:
        raise PackedFileError(f"{path}: malformed packed model: {error}") from None
