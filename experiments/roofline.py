"""How fast a binary convolution can be at all on this core: the products a cycle that its inner loop allows."""

import time
from typing import Any

# Path: (products, vector instructions for them, vector instructions a core starts in a cycle).
# avx512: xor, vpopcntq, add of 512 bits; two such a cycle (Zen 4: four pipes of 256 bits; Ice Lake: ports 0 and 5).
# avx2: nine of 256 bits for three lookups of 256 products; four a cycle (Zen), three on Intel's.
INNER_LOOPS = {"avx512": (512, 3, 2), "avx2": (768, 9, 4)}
# Two fused multiply-adds of eight floats, or one of sixteen.
FP32_PRODUCTS_PER_CYCLE = 16


def clock_hz() -> float:
    """Return the core's clock under a chain of dependent multiplications, best of five."""
    from bnn_kernels.ops.binary_conv.plain_popcount import chain_of_products

    chain_of_products(1000)
    steps, best = 2_000_000, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        chain_of_products(steps)
        best = min(best, time.perf_counter() - start)
    return 4 * steps / best


def roofline() -> dict[str, Any]:
    """Return the clock, and the bounds of one core in products a cycle and GMAC/s; {} bounds on an unmeasured path."""
    import bnn_kernels as bk

    hz = clock_hz()
    found: dict[str, Any] = {
        "clock_ghz": round(hz / 1e9, 2),
        "fp32_bound_gmacs": round(FP32_PRODUCTS_PER_CYCLE * hz / 1e9),
    }
    loop = INNER_LOOPS.get(str(bk.cpu_features()["isa"]))
    if loop is not None:
        products, instructions, starts = loop
        per_cycle = products * starts / instructions
        found |= {"binary_macs_per_cycle_bound": round(per_cycle), "binary_bound_gmacs": round(per_cycle * hz / 1e9)}
    return found
