"""Lazy values: computed at the first use, once, by whichever thread comes first."""

from collections.abc import Callable
from typing import Generic, TypeVar

from bnn_kernels.runtime.fork import new_lock

T = TypeVar("T")


class Lazy(Generic[T]):
    """Calls `make` at the first call and keeps the result; once only, whichever of several threads comes first."""

    def __init__(self, make: Callable[[], T]):
        self._make: Callable[[], T] | None = make
        self._lock = new_lock()
        self._value: T | None = None

    def __call__(self) -> T:
        if self._make is not None:
            with self._lock:
                if self._make is not None:
                    self._value = self._make()
                    self._make = None
        return self._value  # type: ignore[return-value]
