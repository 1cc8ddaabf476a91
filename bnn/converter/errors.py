"""The error of everything that cannot become bits."""


class ConversionError(ValueError):
    """A model that cannot be converted; the message names the module by its dotted path and says what to do."""
