"""What is wrong with an ONNX file that is read as a network."""


class OnnxError(ValueError):
    """A file holds what cannot be read as a network; the message names operator, node and output."""
