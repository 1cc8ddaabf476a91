"""The time of each step of a plan, as it is when a recorded call is played back."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnn_kernels.runtime.recording import Recording
from bnn_kernels.runtime.threads import play_kernels
from bnn_kernels.steps.base import Step


def step_times(
    steps: Sequence[tuple[Step, Sequence[str], Sequence[str]]], registers: dict[str, Any], repeats: int
) -> list[float]:
    """Return the median seconds of each (step, registers that it reads, registers that it writes); fills registers."""
    plays: list[Callable[[], object]] = []
    for step, inputs, outputs in steps:
        given = [registers[name] for name in inputs]
        step.run(*given)  # what is made at a first use is no part of the time
        recording = Recording()
        with recording.running():
            value = step.run(*given)
        plays.append(functools.partial(recording.play, play_kernels))
        registers.update(zip(outputs, (value,) if len(outputs) == 1 else value, strict=True))
    times = np.zeros((repeats, len(plays)))
    for repeat in range(-2, repeats):
        for index, play in enumerate(plays):
            start = time.perf_counter()
            play()
            if repeat >= 0:
                times[repeat, index] = time.perf_counter() - start
    return [float(seconds) for seconds in np.median(times, axis=0)]
