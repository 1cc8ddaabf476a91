"""What an engine is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # a packed network runs without torch
    from torch import Tensor, nn


class Loaded(NamedTuple):
    """predict: batch of inputs -> outputs, of any batch size unless one was asked for.

    layers: convolutions and linear layers that run; integer_layers: those of them that multiply integers.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    layers: int
    integer_layers: int


class Engine(Protocol):
    """name: as the user gives it. libraries: the packages that must be installed, of the extra `extra`."""

    name: str
    libraries: tuple[str, ...]
    extra: str

    def build(self, model: nn.Module, example: Tensor, batches: Sequence[Tensor], folder: Path) -> None:
        """Write what the engine runs into an empty folder.

        model: in evaluation mode, inputs (N, ...) -> outputs (N, ...). example: a batch of its inputs. batches: more of
        them, on which a library that quantizes chooses ranges.
        """

    def load(self, folder: Path, threads: int, batch: int | None = None, counted: bool = True) -> Loaded:
        """Return what a folder holds, ready to run.

        batch: the one batch size that it will get, for engines that make use of that. threads: for engines that have
        threads of their own; those of PyTorch and of the kernels are the process's. counted: without it an engine for
        which counting layers takes memory says 0 of 0.
        """


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes of all files in a folder that an engine has built."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def missing(engine: Engine) -> str | None:
    """Return why an engine cannot be had, and what to do; None if it can."""
    absent = [library for library in engine.libraries if importlib.util.find_spec(library) is None]
    return f"{' and '.join(absent)} not installed: pip install 'bitplanes[{engine.extra}]'" if absent else None


def versions(engines: Iterable[Engine]) -> dict[str, str]:
    """Return the versions of those libraries of some engines that are installed."""
    from importlib.metadata import version

    libraries = sorted({library for engine in engines for library in engine.libraries})
    return {library: version(library) for library in libraries if importlib.util.find_spec(library) is not None}


def has_vnni() -> bool:
    """Say whether this CPU sums products of bytes in 32 bits.

    Without that, engines add pairs of products in 16 bits, which saturate unless weights have 7 bits.
    """
    from bnn_kernels.compile.isa import has

    return has("avx512vnni") or has("avxvnni")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the progress, the advice and the deprecations of exporters and quantizers."""
    loggers = [logging.getLogger(name) for name in (None, "nncf", "torchao")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
