"""A packed model as one C99 header: its weights as bits, its buffers, and a function that runs one image."""

import os
import re
import secrets
from pathlib import Path

import numpy as np

from bnn_kernels.c_header.source import Memory, array, indented
from bnn_kernels.c_header.steps import C_TYPES, STEPS, UnsupportedError, Value
from bnn_kernels.model.packed_model import PackedModel

_ONES = """\
#ifndef BNN_ONES
#define BNN_ONES
/* The set bits of a word. */
static inline int32_t bnn_ones(uint32_t v)
{
    v = v - ((v >> 1) & 0x55555555u);
    v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
    return (int32_t)((((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}
#endif
"""


def _checked_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"a model's name in C begins with a letter and has letters, digits and _, got {name!r}")
    return name


def c_header(model: PackedModel, name: str = "model") -> str:
    """Return the text of a header with `static void NAME_predict(const float *input, float *output)`.

    Input and output are one image's, float32, channels first, as the model takes and returns them. Nothing is
    allocated: constants and buffers are static, so that one call runs at a time. The numbers are those of the packed
    model, bit for bit, where the compiler keeps to IEEE 754 (no -ffast-math) and fmaf rounds once. A NaN that meets a
    quantizer is not noticed. name: letters, digits and _; ValueError for another one, and for a model with a step that
    cannot be written, which it names.
    """
    _checked_name(name)
    if len(model.input_shapes) != 1 or len(model.outputs) != 1:
        raise ValueError("a model in C takes one input and returns one output")
    if model.states:
        raise ValueError("a model that computes step by step cannot be written in C")
    if list(model.input_dtypes) != ["float32"]:
        raise ValueError("a model in C takes floats: this one takes pixels")
    memory, constants, blocks = Memory(), [], []
    values: dict[str, Value] = {}

    def new(register: str) -> Value:
        spec = model.specs[register]._replace(as_bytes=False)
        unnamed = Value(spec, "")
        values[register] = unnamed._replace(name=f"{name}_{memory.take(C_TYPES[spec.kind], unnamed.length)}")
        return values[register]

    x = new("x")
    channels, height, width = x.sides
    blocks.append(
        [
            f"for (int c = 0; c < {channels}; c++) for (int i = 0; i < {height * width}; i++)",
            f"    {x.name}[i * {channels} + c] = input[c * {height * width} + i];",
        ]
    )
    for index, (placed, spec) in enumerate(zip(model.placed, model.steps, strict=True)):
        given = [values[register] for register in placed.inputs]
        made = [new(register) for register in placed.outputs]

        def keep(what: str, content: np.ndarray, index: int = index) -> str:
            called = f"{name}_{index}_{what}"
            constants.append(array(called, content))
            return called

        where = f"{spec.op} {spec.source}".strip()
        if spec.op not in STEPS:
            raise ValueError(f"{where} cannot be written in C: there are {', '.join(sorted(STEPS))}")
        try:
            lines = STEPS[spec.op](placed.step, given, made, keep)
        except UnsupportedError as reason:
            raise ValueError(f"{where} cannot be written in C: {reason}") from None
        shapes = " -> ".join("x".join(map(str, value.spec.shape)) for value in (given[0], made[0]))
        blocks.append([f"{{ /* {where}: {shapes} */", indented(lines, 1), "}"])
        for register in placed.dead:
            memory.give_back(values[register].name.removeprefix(f"{name}_"))
    y = values[model.outputs[0][0]]
    channels, height, width = y.sides
    blocks.append(
        [
            f"for (int c = 0; c < {channels}; c++) for (int i = 0; i < {height * width}; i++)",
            f"    output[c * {height * width} + i] = {y.name}[i * {channels} + c];",
        ]
    )
    guard = f"{name.upper()}_H"
    sizes = "x".join(map(str, model.input_shapes[0])), "x".join(map(str, model.outputs[0][1]))
    about = (
        f"/* {len(model.steps)} steps, {model.nbytes:,} bytes of weights and thresholds in the packed file,\n"
        f"   {memory.nbytes:,} bytes of buffers. {name}_predict takes {sizes[0]} floats and writes {sizes[1]}. */"
    )
    parts = [
        about,
        f"#ifndef {guard}\n#define {guard}\n\n#include <math.h>\n#include <stdint.h>\n",
        _ONES,
        *constants,
        memory.definitions(name),
        f"static void {name}_predict(const float *input, float *output)\n{{",
        *(indented(block, 1) for block in blocks),
        "}\n\n#endif\n",
    ]
    return "\n".join(parts)


def write_c_header(model: PackedModel, path: str | os.PathLike[str], name: str = "model") -> None:
    """Write `c_header` to a file, whole or not at all."""
    text, target = c_header(model, name), Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, encoding="ascii")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
