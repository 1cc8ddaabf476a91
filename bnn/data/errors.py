"""The error of everything that can go wrong with a data set."""


class DataError(RuntimeError):
    """A data set that is missing, damaged or cannot be downloaded; the message says what to do."""
