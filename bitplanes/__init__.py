"""The command `bitplanes`. In Python, import `bnn` (training, conversion) or `bnn_kernels` (packed models).

An installed wheel holds the folders `experiments`, `paper_figures` and `configs` within this one, so that no package of
such a common name lies beside those of others.
"""
