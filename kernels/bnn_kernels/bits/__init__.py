"""Tensors of bits: planes, packing, thresholds, and how bits lie in a file."""
