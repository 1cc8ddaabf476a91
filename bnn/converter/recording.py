"""The recorder of each thread that records a network at the moment."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Recorder(Protocol):
    """Records calls that stay whole."""

    def whole(self, target: Any, run: Callable[..., Any], args: Any, kwargs: Any, module: str = "") -> Any:
        """Run a function, and record it as one operation if its arguments depend on the network's input."""


_OF_THREAD = threading.local()


def current() -> Recorder | None:
    """Return the recorder of this thread, None if it records nothing."""
    return getattr(_OF_THREAD, "recorder", None)


@contextmanager
def in_thread(recorder: Recorder) -> Iterator[None]:
    """Within it, a recorder is the one of this thread."""
    before = current()
    _OF_THREAD.recorder = recorder
    try:
        yield
    finally:
        _OF_THREAD.recorder = before
