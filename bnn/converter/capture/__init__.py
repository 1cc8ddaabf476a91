"""Recording: a network, or a program of torch.export, becomes a graph of ATen operations with names and values."""
