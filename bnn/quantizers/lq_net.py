"""Quantizers whose levels are sums of a learned basis: LQ-Net."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, check_bits
from bnn.quantizers.data_initialized import DataInitialized, mean_over_processes
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.filters import filters
from bnn.quantizers.masks import as_numbers, or_nan
from bnn.quantizers.precision import is_recomputing, without_autocast
from bnn.quantizers.straight_through import straight_through

# The upper quartile of a standard normal number, from which the authors' code takes its first basis.
_QUARTILE = 0.6745
# Up to so many bits each number is compared with all thresholds, which is faster than a search on a CPU.
_COMPARED_BITS = 3
# Ridge that keeps the least squares of the authors' code solvable, towards the basis of before.
_RIDGE = 1e-4


class _LqNet(DataInitialized):
    """levels = B v: v (rows, K) is the basis of each row of data, B holds all 2^K combinations of two code values."""

    low: int  # the code of a bit that is not set; 1 is that of one that is

    def __init__(self, bits: int, rows: int, momentum: float):
        super().__init__()
        self._bits = check_bits(bits)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1], got {momentum!r}")
        self.momentum = momentum
        self.basis: Tensor
        self.register_buffer("basis", (2.0 ** torch.arange(bits)).repeat(rows, 1))

    def _combinations(self, basis: Tensor) -> Tensor:
        """Return all codes, (2^K, K), in {low, 1}."""
        numbers = torch.arange(2**self._bits, device=basis.device)
        set_bits = (numbers[:, None] >> torch.arange(self._bits, device=basis.device)) & 1
        return torch.where(set_bits == 1, 1, self.low).to(basis.dtype)

    def _codes(self, rows: Tensor, basis: Tensor) -> list[Tensor]:
        """Return the codes, K tensors like rows, of the levels nearest to them; halfway the upper one.

        rows: (rows, n), or of any shape if they are one.
        """
        combinations = self._combinations(basis)
        with without_autocast(basis.device):
            levels, order = (basis @ combinations.T).sort(1)
        thresholds, ascending = (levels[:, 1:] + levels[:, :-1]) / 2, combinations[order]
        if self._bits > _COMPARED_BITS:
            place = torch.searchsorted(thresholds, rows.reshape(len(basis), -1), right=True)
            return [code.reshape(rows.shape) for code in combinations[order.gather(1, place)].unbind(-1)]
        like = (len(basis), *[1] * (rows.ndim - 1)) if len(basis) > 1 else ()
        codes = [
            torch.zeros_like(rows, dtype=basis.dtype).add_(code.reshape(like)) for code in ascending[:, 0].unbind(1)
        ]
        changes = ascending.diff(dim=1)  # of whole numbers: sums of them are exact
        for threshold, of_codes in zip(thresholds.unbind(1), changes.unbind(1), strict=True):
            above = as_numbers(rows >= threshold.reshape(like), basis.dtype)
            for code, change in zip(codes, of_codes.unbind(1), strict=True):
                code.addcmul_(above, change.reshape(like))
        return codes

    def _fit(self, rows: Tensor) -> None:
        """Move the basis towards the least-squares basis of the present codes."""
        # At least float32: a solver of fewer bits does not exist.
        dtype = torch.promote_types(rows.dtype, torch.float32)
        rows, basis = rows.to(dtype), self.basis.to(dtype)
        codes = self._codes(rows, basis)
        ridge = _RIDGE * torch.eye(self._bits, dtype=dtype, device=rows.device)
        right = torch.stack([self._sum(code * rows) for code in codes], 1) + _RIDGE * basis
        gram = torch.stack([torch.stack([self._sum(a * b) for a in codes], 1) for b in codes], 1)
        with without_autocast(rows.device):
            found = torch.linalg.solve_ex(gram + ridge, right).result
        self.basis.lerp_(mean_over_processes(found).to(self.basis.dtype), self.momentum)

    def _rows(self, x: Tensor) -> Tensor:
        """Return the numbers with their rows as axis 0, or as they are if they are one."""
        raise NotImplementedError

    def _sum(self, rows: Tensor) -> Tensor:
        """Return the sum of each row."""
        raise NotImplementedError

    def _prepare(self, x: Tensor) -> None:
        self.initialize_once(x)
        if self.training and not is_recomputing():
            with torch.no_grad():
                self._fit(self._rows(x.detach()))

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        basis = self.basis.to(x.dtype)
        codes = self._codes(self._rows(x), basis)
        terms = []
        for k, code in enumerate(codes):
            bits = (code < 0 if self.low < 0 else code > 0).reshape(1, *x.shape)
            scale = basis[:, k] if len(basis) > 1 else basis[0, k]
            terms.append(Term(bits, self.low < 0, (1,), scale))
        return Planes(tuple(terms))

    def extra_repr(self) -> str:
        return f"bits={self._bits}, momentum={self.momentum}"


class LqWeight(_LqNet):
    """K-bit weights. Forward: q(W) = the nearest of the 2^K levels sum_k v_k b_k, b_k in {-1, +1}. Gradient: 1.

    Each output channel (axis 0) has a basis v of its own, which is not learned by gradient: in every training forward
    v moves by `momentum` towards the least-squares fit of the weights to their present codes (the paper's QEM
    algorithm with one iteration and a moving average, as in the authors' code), then the levels are those of the new v.
    v begins at 0.6745 std W 2^(k - K + 1), from the first weights. Halfway between two levels the upper one is taken.
    Zhang et al., "LQ-Nets", ECCV 2018, "quantization error minimization" (QEM).

    bits: K, 1 .. 8. channels: output channels; a layer tells them by itself. momentum: weight of the newest fit.

    >>> quantizer = LqWeight(bits=2, channels=1).eval()
    >>> w = torch.tensor([[-5.0, -2.0, 0.0, 1.5]], requires_grad=True)
    >>> q = quantizer(w)  # the basis of an untrained quantizer is 1, 2, ...: levels -3, -1, 1, 3
    >>> q.tolist()
    [[-3.0, -1.0, 1.0, 1.0]]
    >>> q.sum().backward()
    >>> w.grad.tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    description = Description(
        group=FEW_BITS,
        method="LQ-Net",
        year=2018,
        forward="nearest of sum_k v_k b_k, basis v fitted a channel",
        gradient="1",
        storage="k terms of one {-1,+1} plane",
        published="IN R18 2/2 64.9",
        panel=Panel(options={"momentum": 1.0, "bits": 2}, note="2 bits", training=True),
        examples=(Example((-1, -1, -1, 1, 1, 1, 1, 3), (1, 1, 1, 1, 1, 1, 1, 1), options={"bits": 2}),),
    )

    low = -1
    for_weights = True

    def __init__(self, bits: int, channels: int, momentum: float = 0.1):
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels!r}")
        super().__init__(bits, channels, momentum)

    def initialize(self, x: Tensor) -> None:
        flat = filters(x)
        spread = flat.std(1, correction=0).to(self.basis.dtype)
        self.basis.mul_(_QUARTILE * spread[:, None] / 2 ** (self._bits - 1))

    def _rows(self, x: Tensor) -> Tensor:
        return filters(x)

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.sum(1)

    def forward(self, w: Tensor) -> Tensor:
        self._prepare(w)
        fixed = w.detach()
        return straight_through(w, or_nan(fixed, self.planes(fixed).value()))


class LqActivation(_LqNet):
    """K-bit activations. Forward: q(x) = the nearest of the 2^K levels sum_k v_k b_k, b_k in {0, 1}.

    Gradient: 1 if x is at most the highest level, else 0. The basis v of the layer follows the data as in LqWeight and
    begins at 0.6745 * 2 / (2^K - 1) * 2^k, the quartile of a normalized input times 2 at the top.
    Zhang et al., "LQ-Nets", ECCV 2018; meant for inputs >= 0, such as those behind a ReLU.

    As inputs of a layer they cost K convolutions of each term of its weights: every basis has a scale of its own.

    bits: K, 1 .. 8. momentum: weight of the newest fit.

    >>> quantizer = LqActivation(bits=2).eval()
    >>> with torch.no_grad():
    ...     _ = quantizer.basis.copy_(torch.tensor([[1.0, 2.0]]))
    >>> x = torch.tensor([-1.0, 0.5, 1.75, 4.0], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [0.0, 1.0, 2.0, 3.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    description = Description(
        group=FEW_BITS,
        method="LQ-Net",
        year=2018,
        forward="nearest of sum_k v_k b_k",
        gradient="1 up to the top level",
        storage="k terms of one {0,1} plane",
        published="see `LqWeight`",
        panel=Panel(options={"bits": 2}, note="2 bits"),
        examples=(
            Example((0, 0, 0, 0, 0, 0.4496667, 0.8993333, 1.349), (1, 1, 1, 1, 1, 1, 1, 0), options={"bits": 2}),
        ),
    )

    low = 0
    elementwise = True
    begins_with_data = False  # the first basis is that of normalized inputs

    def __init__(self, bits: int, momentum: float = 0.1):
        super().__init__(bits, 1, momentum)
        self.basis.mul_(_QUARTILE * 2 / (2**bits - 1))

    def initialize(self, x: Tensor) -> None:
        """The first basis does not depend on data."""

    def _rows(self, x: Tensor) -> Tensor:
        return x

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.sum().reshape(1)

    def forward(self, x: Tensor) -> Tensor:
        self._prepare(x)
        fixed = x.detach()
        top = self.basis.clamp(min=0).sum().to(x.dtype)
        return straight_through(x, or_nan(fixed, self.planes(fixed).value()), fixed <= top)
