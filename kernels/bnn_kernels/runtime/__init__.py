"""How kernels run: threads, memory that is used again or given back, and recorded calls."""
