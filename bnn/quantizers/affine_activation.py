"""Uniform activations with a zero point: levels that cover a range which is not symmetric."""

import torch
from torch import Tensor

from bnn.planes import Planes, Term, code_bits, powers_of_two
from bnn.quantizers.base import Uniform
from bnn.quantizers.description import FEW_BITS, Description, Example, Panel
from bnn.quantizers.grid import Grid
from bnn.quantizers.lsq import LearnedStep, LsqActivation


class AffineActivation(LsqActivation):
    """k-bit activations with a learned step and a zero point. Forward: q(x) = s round(clip(x / s, -z, n - z)).

    n = 2^k - 1, and the zero point z, an integer in [0, n], is the code of the value 0, which padding therefore meets
    exactly. Gradient to x: 1 if -z < x / s < n - z, else 0. Gradient to s: that of LSQ, with N features to a sample:
    round(x / s) - x / s inside, -z or n - z outside, summed and multiplied by 1 / sqrt(N n). Step and zero point begin
    with the smallest and largest value of the first batch of training, or with `bnn.calibrate`; training leaves the
    zero point. Halves are rounded to even.
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018, section 2.1, equation 1; the gradient of the step is that of Esser et al., "Learned Step Size Quantization",
    ICLR 2020, equation 3.

    bits: k, 1 .. 8.

    >>> quantizer = AffineActivation(bits=2).eval()
    >>> quantizer.set_grid(torch.tensor([0.5]), torch.tensor([1]))
    >>> x = torch.tensor([[-0.75, 0.0, 0.6, 5.0]], requires_grad=True)
    >>> y = quantizer(x)
    >>> y.tolist()
    [[-0.5, 0.0, 0.5, 1.0]]
    >>> y.sum().backward()
    >>> x.grad.tolist(), round(quantizer.step.grad.item(), 4)
    ([[0.0, 1.0, 1.0, 0.0]], 0.2309)
    """

    description = Description(
        group=FEW_BITS,
        method="affine, as INT8 libraries have it",
        year=2018,
        forward="s round(clip(x/s, -z, 2^k-1-z)), z an integer",
        gradient="1 inside; to s round(x/s) - x/s",
        storage="{0,1}, scale s, a zero point",
        panel=Panel(options={"bits": 2}, learned={"step": 0.5, "zero_point": 1}, note="2 bits, s = 0.5, z = 1"),
        examples=(
            Example(
                (-0.5, -0.5, -0.5, 0, 0, 0.5, 1, 1),
                (0, 0, 0, 1, 1, 1, 0, 0),
                options={"bits": 2},
                learned={"step": 0.5, "zero_point": 1},
            ),
        ),
    )

    def __init__(self, bits: int):
        super().__init__(bits)
        self.zero_point: Tensor
        self.register_buffer("zero_point", torch.tensor(0))

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and highest level: (-z, n - z)."""
        z = int(self.zero_point)
        return -z, 2**self._bits - 1 - z

    def initialize(self, x: Tensor) -> None:
        low, high = (end.reshape(1).to(torch.float32) for end in x.aminmax())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
            torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
        step, zero_point = self.grid.fit(low, high)
        self.step.copy_(step.reshape(()))
        self.zero_point.copy_(zero_point.reshape(()))

    @property
    def grid(self) -> Grid:
        """Levels from 0 to n, with a zero point."""
        return Grid(0, 2**self._bits - 1, has_zero_point=True)

    def set_grid(self, step: Tensor, zero_point: Tensor) -> None:
        self.zero_point.copy_(zero_point.reshape(()))
        super().set_grid(step, zero_point)

    def forward(self, x: Tensor) -> Tensor:
        self.initialize_once(x)
        n, zero = 2**self._bits - 1, self.zero_point.to(x.dtype)
        factor = (self._features(x) * n) ** -0.5
        # Bounds as tensors: reading the zero point would wait for the device.
        return LearnedStep.apply(x, self._step(x), (-zero, n - zero), factor, 0.0)

    @property
    def uniform(self) -> Uniform:
        """Division by the step."""
        return Uniform(float(self._step(torch.zeros(1)).detach()), True, *self.bounds, zero=int(self.zero_point))

    def planes(self, x: Tensor) -> Planes:
        x = x.detach()
        step, zero = self._step(x).detach(), self.zero_point.to(x.dtype)
        n = 2**self._bits - 1
        codes = (x / step).clamp(-zero, n - zero).round() + zero
        bits = code_bits(codes, self._bits)
        term = Term(bits, False, powers_of_two(self._bits), step, self.zero_point.reshape(1), largest=n)
        return Planes((term,))

    def extra_repr(self) -> str:
        return f"bits={self._bits}, zero_point={int(self.zero_point)}"
