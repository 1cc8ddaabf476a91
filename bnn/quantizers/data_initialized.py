"""Quantizers whose learned scales begin at what the first training batch, or the first weights, suggest."""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnn.quantizers.base import Quantizer
from bnn.quantizers.precision import without_autocast


class DataInitialized(Quantizer):
    """Calls `initialize(x)` once, on the first tensor that it quantizes in training mode and that is not empty.

    So a pretrained network needs `bnn.calibrate`, or one forward in training mode, before it is evaluated; its
    evaluation without either warns once. The buffer `initialized` alone says whether that has happened, in copies,
    averages of weights and checkpoints too: who sets the scales by hand fills it with True. Under torch.distributed all
    processes take the mean of what each of them found.
    """

    begins_with_data: bool = True  # whether the scales are placeholders before that

    def __init__(self) -> None:
        super().__init__()
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(False))
        # Reading the buffer waits for the device, so that is done once for each state of it: `_done` is what was read
        # or written last, `_known` of which tensor at which version.
        self._done = False
        self._known: tuple[int, int | None] | None = None
        self._warned = False

    def initialize(self, x: Tensor) -> None:
        """Set the learned scales from x, in place and without gradient."""
        raise NotImplementedError

    @property
    def needs_data(self) -> bool:
        return not self.is_initialized()

    def is_initialized(self) -> bool:
        """Whether the learned scales have begun, as far as that can be known: not on the meta device."""
        if torch.compiler.is_compiling():
            return self._done  # the compiler guards this attribute, but breaks a graph for a number
        if self._known != self._state():
            if not self.initialized.is_meta:
                self._done = bool(self.initialized)
            self._known = self._state()
        return self._done

    def _state(self) -> tuple[int, int | None]:
        """Return which tensor the buffer is now, and at which version."""
        buffer = self.initialized
        # DistributedDataParallel writes every buffer anew in every forward, with what it held.
        counted = not buffer.is_inference() and not _is_distributed()
        return id(buffer), buffer._version if counted else None

    def initialize_once(self, x: Tensor) -> None:
        """Begin the forward of every subclass with this."""
        if not self.training:
            self.before_evaluation()
            return
        if x.numel() == 0 or self.is_initialized():
            return
        with torch.no_grad(), without_autocast(x.device):
            if torch.compiler.is_compiling():
                self._initialize_unless_initialized(x.detach())
            else:
                self.initialize(x.detach())
            self.initialized.fill_(True)
        self._done = True
        if not torch.compiler.is_compiling():
            self._known = self._state()

    def _initialize_unless_initialized(self, x: Tensor) -> None:
        """Initialize, and where the buffer says that this has happened take it back: no number is asked for."""
        state = [*self.parameters(), *self.buffers()]
        before = [tensor.clone() for tensor in state]
        self.initialize(x)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(torch.where(self.initialized, old, tensor))

    def before_evaluation(self) -> None:
        if self._warned or torch.compiler.is_compiling() or not self.is_placeholder():
            return
        root = _outermost_module(self)
        if root is not self:  # who evaluates a quantizer alone knows what is in it
            warn_of_uninitialized(root, f"{type(root).__name__} is evaluated")

    def is_placeholder(self) -> bool:
        """Whether the scales are those of no data; unknown, and so False, on the meta device."""
        return self.begins_with_data and not self.initialized.is_meta and not self.is_initialized()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._known = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has a buffer of its own, whose state is yet to be read.
        super().__setstate__({"_done": False, "_warned": False, **state, "_known": None})


def uninitialized(model: nn.Module) -> Iterator[tuple[str, DataInitialized]]:
    """Yield (dotted path, quantizer) of those in a model whose scales have not begun with data."""
    for path, module in model.named_modules():
        if isinstance(module, DataInitialized) and module.is_placeholder():
            yield path, module


def warn_of_uninitialized(model: nn.Module, what: str, stacklevel: int = 2) -> None:
    """Warn of a model's quantizers whose scales have not begun with data; its evaluations then warn no more."""
    found = list(uninitialized(model))
    for _, quantizer in found:
        quantizer._warned = True
    if found:
        paths = ", ".join(path or type(quantizer).__name__ for path, quantizer in found)
        warnings.warn(
            f"{what}, but these quantizers have never seen data, their scales are placeholders: {paths}. Run "
            "bnn.calibrate(model, batches) or one forward in training mode first, or load trained weights",
            stacklevel=stacklevel + 1,
        )


def _outermost_module(quantizer: nn.Module) -> nn.Module:
    """Return the outermost module whose call led here and that holds the quantizer: its paths are the user's."""
    outermost = quantizer
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module) and any(module is quantizer for module in caller.modules()):
            outermost = caller
        frame = frame.f_back
    return outermost


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of what all processes of a distributed training hold; the value itself without one."""
    if not _is_distributed():
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
