"""How kernels are compiled: Numba's flags and cache, the CPU's instruction sets, and vectors as Numba values."""
