"""Layers whose weights and inputs pass through quantizers."""

from bnn.layers.base import QuantLayer as QuantLayer
from bnn.layers.conv import QuantConv2d as QuantConv2d
from bnn.layers.linear import QuantLinear as QuantLinear
