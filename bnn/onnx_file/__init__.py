"""ONNX files as PyTorch networks, which `bnn.convert` packs like any other."""

from bnn.onnx_file.errors import OnnxError as OnnxError
from bnn.onnx_file.from_onnx import from_onnx as from_onnx
