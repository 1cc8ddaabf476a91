"""What must not be rounded by mixed precision: sums of integers, and statistics from which scales begin."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_autocast(device: torch.device) -> bool:
    """Whether operations on the device are cast to fewer bits."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which operations on the device keep the dtype of what they are given."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()


def is_recomputing() -> bool:
    """Whether a backward pass runs this forward again, as gradient checkpointing does.

    Then what follows the data must not move a second time. In a compiled graph the compiler recomputes by itself.
    """
    # What torch.utils.module_tracker asks.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
