"""Curves over training: what a hyper-parameter is after a share of it.

Each is a function of p, the share of training that is done, in [0, 1]. Before `begin` it holds its start, after `end`
its end; both are shares of training too. ValueError for a stretch or values that make no curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Curve = Callable[[float], float]


@dataclass(frozen=True)
class _Stretch:
    start: float
    end: float
    begin_at: float = 0.0
    end_at: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin_at < self.end_at <= 1:
            raise ValueError(f"need 0 <= begin_at < end_at <= 1, got {self.begin_at!r} and {self.end_at!r}")

    def _share(self, p: float) -> float:
        return min(1.0, max(0.0, (p - self.begin_at) / (self.end_at - self.begin_at)))


@dataclass(frozen=True)
class Linear(_Stretch):
    """start + (end - start) p.

    >>> Linear(1.0, 0.0)(0.25)
    0.75
    """

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * self._share(p)


@dataclass(frozen=True)
class Exponential(_Stretch):
    """start (end / start)^p: equal factors in equal times. Both must be of one sign and not 0.

    IR-Net's t (Qin et al. 2020, error decay estimator) is this curve, T_min 10^(p log10(T_max / T_min)).

    >>> round(Exponential(0.1, 10.0)(0.5), 12)
    1.0
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.start * self.end > 0:
            raise ValueError(f"start and end must be of one sign and not 0, got {self.start!r} and {self.end!r}")

    def __call__(self, p: float) -> float:
        return self.start * (self.end / self.start) ** self._share(p)


@dataclass(frozen=True)
class ExponentialRise(_Stretch):
    """start + (end - start) (e^p - 1) / (e - 1): e times as steep at the end as at the beginning.

    ReCU's tau (Xu et al. 2021, as in the authors' code) is this curve, from 0.85 to 0.99.

    >>> round(ExponentialRise(0.85, 0.99)(0.5), 6)
    0.902856
    """

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * math.expm1(self._share(p)) / math.expm1(1)


@dataclass(frozen=True)
class Cosine(_Stretch):
    """end + (start - end) (1 + cos(pi p)) / 2.

    >>> Cosine(1.0, 0.0)(0.5)
    0.5
    """

    def __call__(self, p: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._share(p))) / 2


@dataclass(frozen=True)
class CosineRise(_Stretch):
    """start + (end - start) (1 - cos(pi p / 2)): flat at the beginning, steepest at the end.

    ReSTE's o (Wu et al. 2023, as in the authors' code) is this curve, from 1 to 3.

    >>> round(CosineRise(1.0, 3.0)(2 / 3), 12)
    2.0
    """

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi / 2 * self._share(p)))


@dataclass(frozen=True)
class Sigmoid(_Stretch):
    """start + (end - start) (f(p) - f(0)) / (f(1) - f(0)), f(p) = 1 / (1 + exp(-steepness (p - 1/2))).

    1 - r of PARQ (Jin et al. 2025, as in the authors' code) is this curve, from 0 to 1. steepness: > 0.

    >>> round(Sigmoid(0.0, 1.0)(0.5), 12)
    0.5
    """

    steepness: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steepness > 0:
            raise ValueError(f"steepness must be positive, got {self.steepness!r}")

    def __call__(self, p: float) -> float:
        first, now, last = (1 / (1 + math.exp(-self.steepness * (q - 0.5))) for q in (0.0, self._share(p), 1.0))
        return self.start + (self.end - self.start) * (now - first) / (last - first)


@dataclass(frozen=True)
class Step:
    """start, multiplied by `factor` at each of the shares `at` (p at or beyond counts).

    >>> Step(1.0, 0.1, at=(0.5, 0.75))(0.5)
    0.1
    """

    start: float
    factor: float
    at: Sequence[float]

    def __post_init__(self) -> None:
        if not self.at or not all(0 <= share <= 1 for share in self.at):
            raise ValueError(f"at must be shares of training in [0, 1], got {self.at!r}")

    def __call__(self, p: float) -> float:
        return self.start * self.factor ** sum(p >= share for share in self.at)


def curve_lr(optimizer: Optimizer, curve: Curve, epochs: int, warmup: int = 0) -> LambdaLR:
    """Return a scheduler whose learning rate after e epochs is the optimizer's own times curve(e / epochs).

    warmup: epochs at the beginning in which the rate rises linearly, to the optimizer's own at epoch `warmup`; the
    curve takes the epochs after it. ValueError unless 0 <= warmup < epochs.
    """
    if not 0 <= warmup < epochs:
        raise ValueError(f"need 0 <= warmup < epochs, got warmup {warmup} and {epochs} epochs")

    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        return curve((epoch - warmup) / (epochs - warmup))

    return LambdaLR(optimizer, factor)
