"""What does not fit the memory is refused before it is allocated."""

import bnn_kernels as bk
import numpy as np
import pytest
from bnn_kernels.runtime import arrays as memory


def test_available_memory_is_what_the_machine_has():
    left = memory.available_memory()
    assert left is None or 0 < left < 1 << 50


@pytest.mark.parametrize("make", ["sums", "bits", "floats"])
def test_outputs_that_do_not_fit(make, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 29)
    conv = bk.PackedConv2d(np.ones((4096, 1, 1, 1), np.float32))
    bits = bk.pack(np.ones((1, 1, 200, 200), np.float32))
    calls = {
        "sums": lambda: conv(bits),
        "floats": lambda: conv.finish(bits, bk.Epilogue(4096)),
        "bits": lambda: bk.PackedConv2d(np.ones((64, 1, 1, 1)), padding=20_000).with_threshold(
            np.zeros(64, np.int32), np.zeros(64, bool)
        )(bits),
    }
    with pytest.raises(MemoryError, match=r"takes .* GiB, and 0.5 GiB of memory are left: use a smaller"):
        calls[make]()


def test_a_border_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 29)
    conv = bk.PackedConv2d(np.ones((1, 1, 1, 1), np.float32), stride=100_000, padding=100_000)
    with pytest.raises(MemoryError, match="border"):
        conv(np.ones((1, 1, 2, 2), np.float32))
