"""What each operator of ONNX becomes: a file for each kind; importing this registers all."""

from bnn.onnx_file.operators import elementwise as elementwise
from bnn.onnx_file.operators import integer as integer
from bnn.onnx_file.operators import layers as layers
from bnn.onnx_file.operators import pool as pool
from bnn.onnx_file.operators import quantize as quantize
from bnn.onnx_file.operators import shape as shape
