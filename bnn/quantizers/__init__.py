"""Quantizers: real tensors to few values, each with the gradient and the definition of its paper."""

from bnn.quantizers.approx_sign import ApproxSign as ApproxSign
from bnn.quantizers.base import FullPrecision as FullPrecision
from bnn.quantizers.base import Quantizer as Quantizer
from bnn.quantizers.dorefa import DoReFaActivation as DoReFaActivation
from bnn.quantizers.dorefa import DoReFaWeight as DoReFaWeight
from bnn.quantizers.rsign import RSign as RSign
from bnn.quantizers.ste_sign import SteSign as SteSign
from bnn.quantizers.ternary_weight import TernaryWeight as TernaryWeight
from bnn.quantizers.xnor_weight import XnorWeight as XnorWeight

TWN = TernaryWeight
BWN = XnorWeight
