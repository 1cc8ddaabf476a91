"""How kernels run: threads, memory that is used again, and recorded calls."""
