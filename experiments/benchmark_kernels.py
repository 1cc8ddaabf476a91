"""Single binary layers beside FP32 and peers, for `python -m experiments.benchmark`.

Each result is checked against PyTorch first; then all sides are timed in turn, in one process, with the same threads.
"bits": packed bits in, thresholded bits out. "floats": float map in, float map out, with a scale and a shift a channel,
channels last on both sides. PyTorch's FP32 is that of its better memory layout.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.timing import Timing, in_turn, set_threads

Row = dict[str, Any]

# Levels of a tensor, its multipliers, and whether its planes are {-1,+1}.
KINDS = {
    "signs": ((-1, 1), (1,), True),
    "ternary": ((-1, 0, 1), (1, -1), False),
    "2 bits": (tuple(range(4)), (1, 2), False),
    "4 bits": (tuple(range(16)), (1, 2, 4, 8), False),
    "8 bits": (tuple(range(256)), tuple(1 << p for p in range(8)), False),
}


def _us(timing: Timing) -> dict[str, float]:
    return {"best": round(timing.best * 1e6, 1), "median": round(timing.median * 1e6, 1)}


def _ratio(other: Timing, ours: Timing) -> dict[str, float]:
    return {"best": round(other.best / ours.best, 2), "median": round(other.median / ours.median, 2)}


class Layer:
    """One convolution or linear layer and all that it is timed against.

    spec: in, out, size (of the map; 0: a linear layer), kernel, and optionally stride, batch, weights, inputs (KINDS).
    """

    def __init__(self, spec: dict[str, Any]):
        import bnn_kernels as bk
        import torch

        self.channels, self.filters, self.size, self.kernel = (
            int(spec[key]) for key in ("in", "out", "size", "kernel")
        )
        self.stride, self.batch = int(spec.get("stride", 1)), int(spec.get("batch", 1))
        self.kinds = str(spec.get("weights", "signs")), str(spec.get("inputs", "signs"))
        self.plain_kind = self.kinds == ("signs", "signs")
        rng = np.random.default_rng(0)
        linear = self.size == 0
        map_shape = () if linear else (self.size, self.size)
        window = () if linear else (self.kernel, self.kernel)
        (w_levels, w_planes, w_signed), (x_levels, x_planes, x_signed) = (KINDS[kind] for kind in self.kinds)
        weight = rng.choice(w_levels, (self.filters, self.channels, *window))
        levels = rng.choice(x_levels, (self.batch, self.channels, *map_shape))
        self.bits = bk.pack_levels(levels, x_planes, x_signed)
        geometry: dict[str, Any] = {} if linear else {"stride": self.stride, "padding": self.kernel // 2}
        make = bk.PackedLinear if linear else bk.PackedConv2d
        self.layer = make.from_levels(weight, w_planes, w_signed, **geometry)
        # In doubles: sums of 8 bits times 8 pass the integers that floats hold.
        arguments = (torch.from_numpy(levels.astype(np.float64)), torch.from_numpy(weight.astype(np.float64)))
        if linear:
            expected = torch.nn.functional.linear(*arguments)
            self.reference: Any = torch.nn.Linear(self.channels, self.filters, bias=False)
        else:
            expected = torch.nn.functional.conv2d(*arguments, **geometry)
            sizes = (self.channels, self.filters, self.kernel)
            self.reference = torch.nn.Conv2d(*sizes, **geometry, bias=False)
        if not np.array_equal(self.layer(self.bits), expected.numpy()):
            raise RuntimeError(f"{self.name} is wrong: nothing to time")
        self.positions = expected.numel() // self.filters
        self.macs = weight.size * self.positions
        self.floats = rng.standard_normal(levels.shape).astype(np.float32)
        self.weight = weight

    @property
    def name(self) -> str:
        """What is timed, in words."""
        if self.size == 0:
            text = f"linear {self.channels}->{self.filters}"
        else:
            text = f"conv {self.channels}->{self.filters} {self.size}x{self.size} {self.kernel}x{self.kernel}"
        text += f" stride {self.stride}" if self.stride > 1 else ""
        return text if self.plain_kind else f"{text}, {self.kinds[0]} x {self.kinds[1]}"

    def packed(self) -> dict[str, Callable[[], Any]]:
        """Return our sides."""
        import bnn_kernels as bk

        filters = self.filters
        to_bits = self.layer.with_threshold(np.zeros(filters, np.int32), np.zeros(filters, bool))
        sides: dict[str, Callable[[], Any]] = {"bits": lambda: to_bits(self.bits)}
        if self.plain_kind:
            ones = np.ones(filters, np.float32)
            epilogue = bk.Epilogue(filters, scale=ones, shift=ones)
            given = self.floats
            if given.ndim == 4:
                given = np.ascontiguousarray(given.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            sides["floats"] = lambda: self.layer.finish(bk.pack(given), epilogue)
        return sides

    def fp32(self) -> dict[str, Callable[[], Any]]:
        """Return PyTorch's sides, one a memory layout."""
        import copy

        import torch

        x = torch.from_numpy(self.floats)
        sides: dict[str, Callable[[], Any]] = {"fp32": lambda: self.reference(x)}
        if x.ndim == 4:
            last = copy.deepcopy(self.reference).to(memory_format=torch.channels_last)
            given = x.to(memory_format=torch.channels_last)
            sides["fp32, channels last"] = lambda: last(given)
        return sides

    def plain(self) -> Callable[[], Any]:
        """Return the textbook loop over windows that are there already; one thread."""
        from bnn_kernels.bits.tensor import pack_codes
        from bnn_kernels.ops.binary_conv.plain_popcount import plain_dots

        weights = pack_codes((self.weight < 0).reshape(self.filters, -1).astype(np.uint8), 1)[0]
        windows = np.random.default_rng(1).integers(0, 1 << 63, (self.positions, weights.shape[1]), np.uint64)
        out = np.empty((self.positions, self.filters), np.int32)
        return lambda: plain_dots(windows, weights, self.weight[0].size, out)


def _time(layer: Layer, threads: int, config: DictConfig, with_peers: bool) -> Row:
    import torch

    packed, fp32 = layer.packed(), layer.fp32()
    peers: dict[str, Callable[[], Any]] = {}
    if with_peers and threads == 1:
        peers["plain popcount"] = layer.plain()
    if with_peers and layer.channels == layer.filters and layer.size:
        from experiments.network_peers import has_openvino
        from experiments.openvino_layers import openvino_layer

        if has_openvino():
            shape = (layer.channels, layer.filters, layer.size, layer.kernel, threads)
            peers |= {f"openvino {kind}": openvino_layer(kind, *shape) for kind in ("fp32", "int8", "binary")}
    sides = packed | fp32 | peers
    with torch.inference_mode():
        times = dict(zip(sides, in_turn(list(sides.values()), config.seconds), strict=True))
    better = min((times[name] for name in fp32), key=lambda t: t.median)
    bits = times["bits"]
    row: Row = {
        "name": layer.name,
        "batch": layer.batch,
        "threads": threads,
        "packed_us": _us(bits),
        "fp32_us": _us(better),
        "ratio": _ratio(better, bits),
        "calls": bits.calls,
        "gmacs_per_second": round(layer.macs / bits.median / 1e9, 1),
    }
    if "floats" in times:
        row |= {"floats_us": _us(times["floats"]), "floats_ratio": _ratio(better, times["floats"])}
    for name in peers:
        timing = times[name]
        if name.startswith("openvino"):
            from experiments.openvino_layers import STACK

            timing = timing.divided(STACK)
        row.setdefault("peers", {})[name] = {"us": _us(timing), "ratio": _ratio(timing, bits)}
    return row


def binary_layers(config: DictConfig) -> Iterable[Row]:
    """Yield a row for each layer of `config.layers` and of `config.variants`, and each number of threads."""
    from bnn.training import RunError

    bad = [entry for entry in config.layers if not isinstance(entry, Sequence) or len(entry) != 4]
    if bad:
        raise RunError(f"an entry of layers is [in, out, size, kernel], got {bad[0]}")
    specs = [dict(zip(("in", "out", "size", "kernel"), entry, strict=True)) for entry in config.layers]
    for number, spec in enumerate([*specs, *map(dict, config.variants)]):
        layer = Layer(spec)
        for threads in config.threads:
            yield _time(layer, set_threads(threads), config, number < config.with_peers)


def main() -> None:
    """Run `experiments.benchmark suite=kernels`, whose options these are."""
    from experiments import benchmark

    sys.argv.insert(1, "suite=kernels")
    benchmark.main()


if __name__ == "__main__":
    sys.exit(main())
