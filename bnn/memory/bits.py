"""Booleans and tensors of few values as bits, on any device, without leaving PyTorch."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A little-endian word of eight booleans b_0 .. b_7 (b_i at bit 8 i) times this has sum_i b_i 2^i as its top byte: b_i
# meets 2^(56 - 7 i) at bit 56 + i, every other product lands below bit 56 or beyond bit 63, no two at the same bit.
_GATHER = 0x0102040810204080


@functools.cache
def _table(device: torch.device) -> Tensor:
    """bool (256, 8): the bits of every byte, lowest first."""
    codes = torch.arange(256, device=device)[:, None]
    return (codes >> torch.arange(8, device=device)) & 1 != 0


def pack_flags(flags: Tensor) -> Tensor:
    """Return uint8 (ceil(n / 8),) of bool (n,): flag i is bit i % 8 of byte i // 8; bits past the end are 0."""
    rest = -len(flags) % 8
    if rest or flags.storage_offset() % 8:
        flags = torch.nn.functional.pad(flags, (0, rest))
    return ((flags.view(torch.uint8).view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack_flags(packed: Tensor, n: int, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return the n flags as bool, or as `high` where a flag is set and `low` elsewhere (0-d, of the result's dtype)."""
    table = _table(packed.device)
    if low is not None and high is not None:
        table = torch.where(table, high, low)
        return table.index_select(0, packed.to(torch.int32)).flatten()[:n]
    words = table.view(torch.uint8).view(torch.int64).flatten()
    return words.index_select(0, packed.to(torch.int32)).view(torch.uint8).view(torch.bool)[:n]


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True)
class PackedTensor:
    """A dense tensor of two values, or of booleans, as bits in the order of its memory."""

    bits: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    values: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(tensor: Tensor) -> "PackedTensor | None":
        """Pack a tensor that has at most two values; None if it is empty or not dense."""
        if tensor.numel() == 0 or not _dense(tensor):
            return None
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        if tensor.dtype == torch.bool:
            return PackedTensor(pack_flags(flat), tensor.shape, tensor.stride(), None)
        low, high = flat.aminmax()
        return PackedTensor(pack_flags(flat == high), tensor.shape, tensor.stride(), (low, high))

    @staticmethod
    def window(tensor: Tensor, low: float, high: float) -> "PackedTensor | None":
        """Pack which elements lie strictly between two bounds; None if it is empty or not dense.

        It comes back with one value between the bounds in the place of those, and `low` in the place of all others.
        high may be infinite: then there is no upper bound.
        """
        if tensor.numel() == 0 or not _dense(tensor):
            return None
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        outside = flat <= low
        if math.isfinite(high):
            outside |= flat >= high
        inside = (low + high) / 2 if math.isfinite(high) else low + 1
        values = (flat.new_tensor(inside), flat.new_tensor(low))
        return PackedTensor(pack_flags(outside), tensor.shape, tensor.stride(), values)

    def unpack(self) -> Tensor:
        """Return the tensor: the same values, dtype, shape and strides."""
        flat = unpack_flags(self.bits, self.size.numel(), *(self.values or ()))
        return flat.as_strided(self.size, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return self.bits.numel()


@dataclass(frozen=True)
class PackedCodes:
    """A dense tensor of at most 2^k known values, as k bits an element in the order of its memory."""

    planes: tuple[Tensor, ...]
    size: torch.Size
    stride: tuple[int, ...]
    values: Tensor

    @staticmethod
    def of(tensor: Tensor, values: Tensor) -> "PackedCodes | None":
        """Pack a tensor all of whose values are among `values` (1-d, ascending); None if it is empty or not dense."""
        if tensor.numel() == 0 or not _dense(tensor):
            return None
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        values = values.to(tensor.dtype)
        codes = torch.searchsorted(values, flat, out_int32=True).clamp_(max=len(values) - 1)
        planes = tuple(pack_flags((codes >> p) & 1 != 0) for p in range((len(values) - 1).bit_length()))
        # A NaN has no code of its own: it makes all values NaN.
        return PackedCodes(planes, tensor.shape, tensor.stride(), values + 0 * flat.amax())

    def unpack(self) -> Tensor:
        """Return the tensor: the same values, dtype, shape and strides."""
        codes = torch.zeros(self.size.numel(), dtype=torch.int32, device=self.values.device)
        for p, plane in enumerate(self.planes):
            codes |= unpack_flags(plane, len(codes)).to(torch.int32) << p
        return self.values.index_select(0, codes).as_strided(self.size, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return sum(plane.numel() for plane in self.planes)
