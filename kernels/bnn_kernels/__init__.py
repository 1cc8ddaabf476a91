"""Kernels on bits: pack tensors into bit planes, convolve and multiply them by popcount, run whole packed models.

NumPy in, NumPy out; needs numpy, numba (which brings llvmlite) and safetensors, never torch. `reference` holds the
same functions in plain NumPy.
"""

from bnn_kernels import reference as reference
from bnn_kernels.bits.tensor import BitTensor as BitTensor
from bnn_kernels.bits.tensor import pack as pack
from bnn_kernels.bits.tensor import pack_levels as pack_levels
from bnn_kernels.bits.tensor import unpack as unpack
from bnn_kernels.bits.thresholds import Thresholds as Thresholds
from bnn_kernels.bits.uniform import UniformLevels as UniformLevels
from bnn_kernels.compile.isa import cpu_features as cpu_features
from bnn_kernels.errors import PackedFileError as PackedFileError
from bnn_kernels.errors import PlanError as PlanError
from bnn_kernels.model.packed_model import PackedModel as PackedModel
from bnn_kernels.model.packed_model import load as load
from bnn_kernels.onnx_file.export import onnx_model as onnx_model
from bnn_kernels.onnx_file.export import write_onnx as write_onnx
from bnn_kernels.ops.epilogue import Epilogue as Epilogue
from bnn_kernels.ops.packed_layers.conv1d import PackedConv1d as PackedConv1d
from bnn_kernels.ops.packed_layers.conv1d import ThresholdConv1d as ThresholdConv1d
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d as PackedConv2d
from bnn_kernels.ops.packed_layers.conv2d import ThresholdConv2d as ThresholdConv2d
from bnn_kernels.ops.packed_layers.linear import PackedLinear as PackedLinear
from bnn_kernels.ops.packed_layers.linear import ThresholdLinear as ThresholdLinear
from bnn_kernels.runtime.threads import get_num_threads as get_num_threads
from bnn_kernels.runtime.threads import set_num_threads as set_num_threads
from bnn_kernels.steps.fields import StepSpec as StepSpec

__version__ = "0.1.0"
