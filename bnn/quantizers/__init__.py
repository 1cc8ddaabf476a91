"""Quantizers: real tensors to few values, each with the gradient and the definition of its paper."""

from bnn.quantizers.abc_activation import AbcActivation as AbcActivation
from bnn.quantizers.abc_weight import AbcWeight as AbcWeight
from bnn.quantizers.adabin import AdaBinActivation as AdaBinActivation
from bnn.quantizers.adabin import AdaBinWeight as AdaBinWeight
from bnn.quantizers.affine_activation import AffineActivation as AffineActivation
from bnn.quantizers.approx_sign import ApproxSign as ApproxSign
from bnn.quantizers.base import FullPrecision as FullPrecision
from bnn.quantizers.base import Quantizer as Quantizer
from bnn.quantizers.binary_connect import BinaryConnect as BinaryConnect
from bnn.quantizers.bitnet import AbsmaxActivation as AbsmaxActivation
from bnn.quantizers.bitnet import AbsmeanTernary as AbsmeanTernary
from bnn.quantizers.dorefa import DoReFaActivation as DoReFaActivation
from bnn.quantizers.dorefa import DoReFaWeight as DoReFaWeight
from bnn.quantizers.dorefa_gradient import DoReFaGradient as DoReFaGradient
from bnn.quantizers.dorefa_gradient import quantize_gradients as quantize_gradients
from bnn.quantizers.ede_sign import EdeSign as EdeSign
from bnn.quantizers.elastic_binary_activation import ElasticBinaryActivation as ElasticBinaryActivation
from bnn.quantizers.fda_sign import FdaSign as FdaSign
from bnn.quantizers.learned_scale_weight import LearnedScaleWeight as LearnedScaleWeight
from bnn.quantizers.libra_weight import LibraWeight as LibraWeight
from bnn.quantizers.lq_net import LqActivation as LqActivation
from bnn.quantizers.lq_net import LqWeight as LqWeight
from bnn.quantizers.lsq import LsqActivation as LsqActivation
from bnn.quantizers.lsq import LsqWeight as LsqWeight
from bnn.quantizers.magnitude_aware_sign import MagnitudeAwareSign as MagnitudeAwareSign
from bnn.quantizers.n2uq import N2uqActivation as N2uqActivation
from bnn.quantizers.n2uq import N2uqWeight as N2uqWeight
from bnn.quantizers.noise_adapted_sign import NoiseAdaptedSign as NoiseAdaptedSign
from bnn.quantizers.pact import Pact as Pact
from bnn.quantizers.pixel_levels import PixelLevels as PixelLevels
from bnn.quantizers.progressive_sign import ProgressiveSign as ProgressiveSign
from bnn.quantizers.rbnn import RbnnSign as RbnnSign
from bnn.quantizers.rbnn import RotatedWeight as RotatedWeight
from bnn.quantizers.recu import RecuSign as RecuSign
from bnn.quantizers.recu import RecuWeight as RecuWeight
from bnn.quantizers.relaxed_weight import RelaxedWeight as RelaxedWeight
from bnn.quantizers.reste import ResteSign as ResteSign
from bnn.quantizers.reste import ResteWeight as ResteWeight
from bnn.quantizers.rsign import RSign as RSign
from bnn.quantizers.stable_lsq import StableLsqWeight as StableLsqWeight
from bnn.quantizers.ste_sign import SteSign as SteSign
from bnn.quantizers.stochastic_sign import StochasticSign as StochasticSign
from bnn.quantizers.stretched_elastic_weight import StretchedElasticWeight as StretchedElasticWeight
from bnn.quantizers.swish_sign import SwishSign as SwishSign
from bnn.quantizers.ternary_activation import TernaryActivation as TernaryActivation
from bnn.quantizers.ternary_weight import TernaryWeight as TernaryWeight
from bnn.quantizers.trained_ternary import TrainedTernary as TrainedTernary
from bnn.quantizers.xnor_weight import XnorWeight as XnorWeight

TWN = TernaryWeight
TTQ = TrainedTernary
BWN = XnorWeight
