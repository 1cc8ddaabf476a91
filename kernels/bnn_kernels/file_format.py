"""The packed file: safetensors with a JSON header, checked by SHA-256 before anything in it is believed.

Layout (version 2). The safetensors metadata holds
    "format"   "bitplanes"
    "version"  "2"
    "header"   JSON: {"inputs": [shape], "outputs": [[register, shape]],
               "steps": [{"op", "inputs", "outputs", "attrs", "tensors", "sources"}], "versions", "info"}
    "sha256"   over the header text, the table of tensors (names, dtypes, shapes, places) and the payload
and tensor `name` of step i is stored as "i.name".
Version 1 knew one input and output of a plan and one output of a step.

Weights are dense bits, 1 bit a weight and plane (`dense_bits`).
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from bnn_kernels.errors import PackedFileError

FORMAT = "bitplanes"
VERSION = "2"


def _digest(header: str, table: dict[str, Any], payload: memoryview | bytes) -> str:
    digest = hashlib.sha256(header.encode())
    digest.update(json.dumps(table, sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()


def _split(blob: bytes) -> tuple[dict[str, Any], memoryview]:
    size = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + size]), memoryview(blob)[8 + size :]


def write(path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write a packed file to a temporary name beside `path`, then rename it: an old file stays whole until then."""
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    table, payload = _split(safetensors.numpy.save(arrays, {"format": FORMAT}))
    table.pop("__metadata__")
    metadata = {"format": FORMAT, "version": VERSION, "header": text, "sha256": _digest(text, table, payload)}
    blob = safetensors.numpy.save(arrays, metadata)
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".tmp", delete=False) as file:
        try:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    # NamedTemporaryFile makes 0600; a result file is as readable as any other.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file.name, 0o666 & ~umask)
    os.replace(file.name, target)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (header, tensors). FileNotFoundError, or PackedFileError that says what is wrong with the file."""
    blob = Path(path).read_bytes()
    if len(blob) < 8:
        raise PackedFileError(f"{path}: {len(blob)} bytes, too short for a packed model; it was cut off. Convert again")
    try:
        table, payload = _split(blob)
        metadata = table.pop("__metadata__", {})
        names = metadata.get("format"), metadata.get("version"), metadata.get("header"), metadata.get("sha256")
        end = max((int(entry["data_offsets"][1]) for entry in table.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise PackedFileError(
            f"{path} is not a packed model, or its header is damaged or cut off. Convert the run again"
        ) from None
    found_format, version, header, digest = names
    if found_format != FORMAT:
        raise PackedFileError(f"{path} is a safetensors file, but not a packed model (no format {FORMAT!r})")
    if version != VERSION:
        raise PackedFileError(
            f"{path} has format version {version!r}, this library reads {VERSION!r}. "
            "Convert the run again with this version, or install the version that wrote it"
        )
    if len(payload) != end:
        raise PackedFileError(f"{path}: {len(payload)} bytes of tensors, the header says {end}: cut off?")
    if not isinstance(header, str) or _digest(header, table, payload) != digest:
        raise PackedFileError(f"{path}: the SHA-256 does not match, the file is damaged. Copy or convert it again")
    try:
        return json.loads(header), safetensors.numpy.load(blob)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise PackedFileError(f"{path}: malformed packed model: {error}") from None
