"""Errors of this package that are more than a plain ValueError or TypeError."""


class PackedFileError(ValueError):
    """A packed model file that is truncated, damaged, of another version or inconsistent in itself."""


class PlanError(ValueError):
    """A plan whose steps do not fit together: unknown op, missing tensor, wrong shape."""
