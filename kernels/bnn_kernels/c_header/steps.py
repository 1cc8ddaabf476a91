"""The steps of a plan in C, each a block of loops over one image; maps lie channels last.

Bits are words of 32: plane by plane, place by place, the channels of a place from the lowest bit on, zeros behind them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnn_kernels.bits.storage import from_dense_bits
from bnn_kernels.bits.tensor import code_of
from bnn_kernels.c_header.finish import Keep, finish_lines, float_lines, level_lines, set_bits, threshold_lines
from bnn_kernels.c_header.source import indented, number
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.pooling import BLOCK
from bnn_kernels.steps.base import Spec
from bnn_kernels.steps.weights import read_terms

# The C type of a register's numbers.
C_TYPES = {"float": "float", "int": "int32_t", "bits": "uint32_t"}


class Value(NamedTuple):
    """A register: its spec, and the C name of its buffer."""

    spec: Spec
    name: str

    @property
    def sides(self) -> tuple[int, int, int]:
        """(C, H, W); a vector is a map of one place."""
        shape = self.spec.shape
        return (*shape, 1, 1) if len(shape) == 1 else shape  # type: ignore[return-value]

    @property
    def positions(self) -> int:
        """Its places."""
        return math.prod(self.sides[1:])

    @property
    def row(self) -> int:
        """Words of a place of bits."""
        return words_of(self.sides[0])

    @property
    def length(self) -> int:
        """Numbers of its buffer."""
        if self.spec.kind != "bits":
            return math.prod(self.spec.shape)
        return len(self.spec.multipliers) * self.positions * self.row


class UnsupportedError(ValueError):
    """A step cannot be written in C."""


def words_of(channels: int) -> int:
    """Return how many words of 32 bits hold a place's channels."""
    return -(-channels // 32)


def _words(codes: np.ndarray, planes: int) -> np.ndarray:
    """Return uint32 (P, ..., words) of codes uint8 (..., C)."""
    channels = codes.shape[-1]
    padded = np.zeros((*codes.shape[:-1], words_of(channels) * 32), np.uint8)
    padded[..., :channels] = codes
    bits = (padded[None] >> np.arange(planes, dtype=np.uint8).reshape(-1, *[1] * codes.ndim)) & 1
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4").astype(np.uint32)


def _clear(*values: Value) -> list[str]:
    return [f"for (int i = 0; i < {v.length}; i++) {v.name}[i] = 0;" for v in values if v.spec.kind == "bits"]


def _need(is_so: bool, message: str) -> None:
    if not is_so:
        raise UnsupportedError(message)


def _outputs(made: list[Value]) -> tuple[Value | None, Value | None]:
    """Return (floats, bits) among what a step writes."""
    floats = next((v for v in made if v.spec.kind == "float"), None)
    return floats, next((v for v in made if v.spec.kind == "bits"), None)


def _bit_writer(bits: Value | None) -> Callable[[str], list[str]]:
    def write(code: str) -> list[str]:
        assert bits is not None
        return set_bits(bits.name, len(bits.spec.multipliers), bits.positions, bits.row, "place", code)

    return write


def _over(sides: tuple[int, int, int], first: list[str], body: list[str]) -> list[str]:
    """Return loops over places (y, x) and channels c around a body."""
    channels, height, width = sides
    inner = [f"for (int c = 0; c < {channels}; c++) {{", indented(body, 1), "}"]
    return [
        *first,
        f"for (int y = 0; y < {height}; y++) for (int x = 0; x < {width}; x++) {{",
        f"    const int place = y * {width} + x;",
        indented(inner, 1),
        "}",
    ]


def _windows(
    geometry: tuple[int, ...], extent: tuple[int, int], tap: list[str], outside: list[str] | None = None
) -> list[str]:
    """Return loops over the taps of a window; inside the map iy and ix are its place. outside: lines for the others."""
    kh, kw, sy, sx, py, px, dy, dx = geometry[:8]
    height, width = extent
    never = not any((py, px, *geometry[8:]))
    skip = [] if never else [f"if (iy < 0 || iy >= {height} || ix < 0 || ix >= {width}) {{"]
    if not never:
        skip += [*(f"    {line}" for line in outside or []), "    continue;", "}"]
    return [
        f"for (int ky = 0; ky < {kh}; ky++) for (int kx = 0; kx < {kw}; kx++) {{",
        f"    const int iy = y * {sy} + ky * {dy} - {py}, ix = x * {sx} + kx * {dx} - {px};",
        indented([*skip, *tap], 1),
        "}",
    ]


def _finished(step: Any, given: list[Value], made: list[Value], keep: Keep, scale: Any, shift: Any) -> list[str]:
    """Return what follows the float v of (place, c)."""
    floats, bits = _outputs(made)
    at = f"[place * {made[0].sides[0]} + c]"
    rest = "" if step.finish.residual is None else f"{given[-1].name}{at}"
    lines = float_lines(step.fields, step.tensors, scale, shift, keep, rest)
    return finish_lines(step.finish, lines, f"{floats.name}{at}" if floats else "", _bit_writer(bits), keep)


def _conv_float(
    step: Any,
    shape: tuple[int, ...],
    geometry: tuple[int, ...],
    groups: int,
    pad: float,
    given: list[Value],
    made: list[Value],
    keep: Keep,
) -> list[str]:
    _need(step.fields.terms is None, "its weights are bits and its inputs floats")
    filters, own, kh, kw = shape
    channels, height, width = given[0].sides
    weight = np.asarray(step.tensors["weight"]).reshape(shape).transpose(0, 2, 3, 1)
    w = keep("weight", np.ascontiguousarray(weight))
    group = f"c / {filters // groups} * {own} + k" if groups > 1 else "k"
    at = f"((c * {kh} + ky) * {kw} + kx) * {own} + k"
    tap = [f"for (int k = 0; k < {own}; k++)"]
    inside = [*tap, f"    v = fmaf({given[0].name}[(iy * {width} + ix) * {channels} + {group}], {w}[{at}], v);"]
    beside = [*tap, f"    v = fmaf({number(np.float32(pad), 'float32')}, {w}[{at}], v);"] if pad != 0 else None
    names = step.tensors
    shift = names.get("bias", names.get("shift"))
    body = [
        "float v = 0.0f;",
        *_windows(geometry, (height, width), inside, beside),
        *_finished(step, given, made, keep, names.get("scale"), shift),
    ]
    return _over(made[0].sides, _clear(*made), body)


def float_conv(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A convolution in FP32: each product is added with one rounding, in the order (ky, kx, channel)."""
    groups, pad = step.fields.groups, float(step.fields.pad_value)
    return _conv_float(step, step.shape, step.geometry, groups, pad, given, made, keep)


def float_linear(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A linear layer in FP32."""
    return _conv_float(step, (*step.shape, 1, 1), (1, 1, 1, 1, 0, 0, 1, 1), 1, 0.0, given, made, keep)


# A product of two planes, by whether the input's and the weight's are {-1,+1}, from counts of bits.
_PRODUCTS = {
    (True, True): ("{channels} - 2 * n", "a[i] ^ w[i]", None),
    (False, True): ("m - 2 * n", "a[i] & w[i]", "a[i]"),
    (True, False): ("m - 2 * n", "a[i] & w[i]", "w[i]"),
    (False, False): ("n", "a[i] & w[i]", None),
}


def _conv_bits(
    step: Any, shape: tuple[int, ...], geometry: tuple[int, ...], given: list[Value], made: list[Value], keep: Keep
) -> list[str]:
    terms = read_terms(step.fields)
    _need(len(terms) == 1 and not step.fields.weight_offset, "its weights have several scales, or an offset")
    _need(not step.given.several and not step.input_scale, "its inputs have scales of their own")
    _need(step.zero is None, "its inputs have zero points")
    _need(step.groups == 1, "it is a convolution in groups")
    (multipliers, signed), x = terms[0], given[0]
    filters, channels, kh, kw = shape
    codes = from_dense_bits(np.asarray(step.tensors["bits.0"]), step.shape).reshape(shape).transpose(0, 2, 3, 1)
    w = keep("weight", _words(np.ascontiguousarray(codes), len(multipliers)))
    of_x, of_w = (
        keep(name, np.array(m, np.int32)) for name, m in (("levels_x", x.spec.multipliers), ("levels_w", multipliers))
    )
    product, joined, alone = _PRODUCTS[x.spec.signed, signed]
    row, planes = x.row, len(x.spec.multipliers)
    _, height, width = x.sides

    def tap(where: str) -> list[str]:
        count = f"n += bnn_ones({joined});"
        also = "" if alone is None else f" m += bnn_ones({alone});"
        return [
            f"for (int p = 0; p < {planes}; p++) for (int q = 0; q < {len(multipliers)}; q++) {{",
            f"    const uint32_t *a = {where};",
            f"    const uint32_t *w = {w} + (((q * {filters} + c) * {kh} + ky) * {kw} + kx) * {row};",
            f"    int32_t n = 0{'' if alone is None else ', m = 0'};",
            f"    for (int i = 0; i < {row}; i++) {{ {count}{also} }}",
            f"    sum += {of_x}[p] * {of_w}[q] * ({product.format(channels=channels)});",
            "}",
        ]

    inside = tap(f"{x.name} + ((p * {height} + iy) * {width} + ix) * {row}")
    beside = None
    if step.pad_level != 0 and step.pads:
        maps = Maps((height, width), (1, 1), x.spec.signed, x.spec.multipliers)
        code = np.full((1, channels), code_of(step.pad_level, maps), np.uint8)
        beside = tap(f"{keep('pad', _words(code, planes))} + p * {row}")
    body = ["int32_t sum = 0;", *_windows(geometry, (height, width), inside, beside)]
    if step.thresholds is not None:
        body += threshold_lines(step.thresholds, _bit_writer(made[0]), keep)
    elif step.output == "int":
        body.append(f"{made[0].name}[place * {filters} + c] = sum;")
    else:
        body += [
            "float v = (float)sum;",
            *_finished(step, given, made, keep, step.scales[0], step.tensors.get("shift")),
        ]
    return _over(made[0].sides, _clear(*made), body)


def binary_conv(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A convolution of bits."""
    return _conv_bits(step, step.shape, step.geometry, given, made, keep)


def binary_linear(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A linear layer of bits: over a map, a convolution with a filter of the map's size."""
    channels, height, width = given[0].sides
    shape = (step.shape[0], channels, height, width)
    return _conv_bits(step, shape, (height, width, 1, 1, 0, 0, 1, 1), given, made, keep)


def pool_bits(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A maximum of sign bits: all of a window, or one of them in channels that fall."""
    x, y = given[0], made[0]
    _, height, width = x.sides
    falling = _words((~step.tensors["rising"]).astype(np.uint8)[None], 1)
    mask = keep("falling", falling)
    at = f"{x.name}[(iy * {width} + ix) * {x.row} + c]"
    body = [
        "uint32_t all = 0xffffffffu, any = 0;",
        *_windows(step.geometry, (height, width), [f"all &= {at};", f"any |= {at};"]),
        f"{y.name}[place * {y.row} + c] = (all & ~{mask}[c]) | (any & {mask}[c]);",
    ]
    return _over((y.row, *y.sides[1:]), [], body)


def max_pool(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A maximum of floats."""
    channels, height, width = given[0].sides
    body = [
        "float v = -INFINITY;",
        *_windows(
            step.geometry,
            (height, width),
            [f"const float u = {given[0].name}[(iy * {width} + ix) * {channels} + c];", "if (u > v || u != u) v = u;"],
        ),
        f"{made[0].name}[place * {channels} + c] = v;",
    ]
    return _over(made[0].sides, [], body)


def pool_int(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A maximum of integers, or a minimum in channels that fall."""
    channels, height, width = given[0].sides
    rising = keep("rising", step.rising)
    tap = [
        f"const int32_t u = {given[0].name}[(iy * {width} + ix) * {channels} + c];",
        "if (none || (rising ? u > v : u < v)) v = u;",
        "none = 0;",
    ]
    body = [
        "int32_t v = 0;",
        "int none = 1;",
        f"const int rising = {rising}[c];",
        *_windows(step.geometry, (height, width), tap),
        f"{made[0].name}[place * {channels} + c] = v;",
    ]
    return _over(made[0].sides, [], body)


def avg_pool(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """A mean of floats, what lies outside counting as zeros."""
    channels, height, width = given[0].sides
    area = step.geometry[0] * step.geometry[1]
    at = f"{given[0].name}[(iy * {width} + ix) * {channels} + c]"
    to = f"{made[0].name}[place * {channels} + c]"
    count = number(np.float32(area), "float32")
    if area <= BLOCK:
        body = [
            "float v = 0.0f;",
            *_windows(step.geometry, (height, width), [f"v = v + {at};"]),
            f"{to} = v / {count};",
        ]
        return _over(made[0].sides, [], body)
    _need(channels % 16 == 0, f"it is a mean of more than {BLOCK} numbers in {channels} channels, no multiple of 16")
    # As `ops.pooling.mean_of_window` has it: sums of blocks, and what is rounded off where they are added.
    two_sum = [
        "const float s = total + v, w = s - total, u = s - w, d = total - u, e = v - w;",
        "error = d + e;",
        "total = s;",
    ]
    tap = [
        f"v = v + {at};",
        f"if (--left == 0) {{ {' '.join(two_sum)} lost = lost + error; v = 0.0f; left = {BLOCK}; }}",
    ]
    body = [
        "float v = 0.0f, total = 0.0f, lost = 0.0f, error = 0.0f;",
        f"int left = {BLOCK};",
        *_windows(step.geometry, (height, width), tap),
        f"{{ {' '.join(two_sum)} }}",
        "lost = lost + error;",
        "total = total + lost;",
        f"{to} = total / {count};",
    ]
    return _over(made[0].sides, [], body)


def select(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """Channels, rows and columns by index, zeros where it is -1."""
    channels, _, width = given[0].sides
    places = []
    for name, loop in (("channels", "c"), ("rows", "y"), ("columns", "x")):
        index = step.index.get(name)
        places.append(loop if index is None else f"{keep(name, index)}[{loop}]")
    of_c, of_y, of_x = places
    to = f"{made[0].name}[place * {made[0].sides[0]} + c]"
    body = [
        f"const int ic = {of_c}, iy = {of_y}, ix = {of_x};",
        f"{to} = ic < 0 || iy < 0 || ix < 0 ? 0.0f : {given[0].name}[(iy * {width} + ix) * {channels} + ic];",
    ]
    return _over(made[0].sides, [], body)


def threshold(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """Integers to levels through thresholds."""
    channels = given[0].sides[0]
    body = [
        f"const int32_t sum = {given[0].name}[place * {channels} + c];",
        *threshold_lines(step.thresholds, _bit_writer(made[0]), keep),
    ]
    return _over(made[0].sides, _clear(*made), body)


def pack(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """Floats to levels, rounded or compared with thresholds."""
    channels = given[0].sides[0]
    write = _bit_writer(made[0])
    body = [f"const float v = {given[0].name}[place * {channels} + c];"]
    if step.levels is not None:
        body += [*level_lines(step.levels), *write("code")]
    else:
        levels, columns = step.thresholds.shape
        t, flip = keep("thresholds", step.thresholds), keep("flip", step.flip.astype(np.uint8))
        codes = keep("codes", step.codes)
        c = "c" if columns > 1 else "0"
        body += [
            "int level = 0;",
            f"for (int i = 0; i < {levels}; i++) level += (v >= {t}[i * {columns} + {c}]) ^ {flip}[{c}];",
            *write(f"(uint32_t){codes}[level]"),
        ]
    return _over(made[0].sides, _clear(*made), body)


def elementwise(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """The operations that follow a layer, by themselves."""
    at = f"[place * {given[0].sides[0]} + c]"
    body = [
        f"float v = {'(float)' * (given[0].spec.kind == 'int')}{given[0].name}{at};",
        *_finished(step, given, made, keep, step.tensors.get("scale"), step.tensors.get("shift")),
    ]
    return _over(made[0].sides, _clear(*made), body)


def reshape(step: Any, given: list[Value], made: list[Value], keep: Keep) -> list[str]:
    """The same floats, in the order of channels first, in another shape."""
    (channels, height, width), (to, rows, columns) = given[0].sides, made[0].sides
    body = [
        f"const int i = (c * {height} + y) * {width} + x;",
        f"const int pixel = i % {rows * columns};",
        f"{made[0].name}[pixel * {to} + i / {rows * columns}] = {given[0].name}[place * {channels} + c];",
    ]
    return _over(given[0].sides, [], body)


STEPS: dict[str, Callable[[Any, list[Value], list[Value], Keep], list[str]]] = {
    function.__name__: function
    for function in (
        float_conv, float_linear, binary_conv, binary_linear, pool_bits, pool_int, max_pool, avg_pool, pack, threshold,
        elementwise, select, reshape,
    )
}  # fmt: skip
