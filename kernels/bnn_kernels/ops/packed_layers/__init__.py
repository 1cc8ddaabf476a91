"""Packed layers: convolutions and linear layers on levels, by whichever kernels are the fastest for them."""
