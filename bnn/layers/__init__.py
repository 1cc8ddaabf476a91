"""Layers whose weights and inputs pass through quantizers."""

from bnn.layers.base import QuantLayer as QuantLayer
from bnn.layers.bit_linear import BitLinear as BitLinear
from bnn.layers.cached_attention import CachedAttention as CachedAttention
from bnn.layers.conv import QuantConv1d as QuantConv1d
from bnn.layers.conv import QuantConv2d as QuantConv2d
from bnn.layers.conv import QuantConv3d as QuantConv3d
from bnn.layers.conv_transpose import QuantConvTranspose1d as QuantConvTranspose1d
from bnn.layers.conv_transpose import QuantConvTranspose2d as QuantConvTranspose2d
from bnn.layers.conv_transpose import QuantConvTranspose3d as QuantConvTranspose3d
from bnn.layers.dropped_input import DroppedInput as DroppedInput
from bnn.layers.embedding import QuantEmbedding as QuantEmbedding
from bnn.layers.linear import QuantLinear as QuantLinear
from bnn.layers.maxout import Maxout as Maxout
from bnn.layers.output_scale import OutputScale as OutputScale
from bnn.layers.pixel_normalize import PixelNormalize as PixelNormalize
from bnn.layers.rprelu import RPReLU as RPReLU
