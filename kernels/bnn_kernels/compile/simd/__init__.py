"""LLVM's vectors as Numba values, one vector type a file."""
